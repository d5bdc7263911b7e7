from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t


cdef extern from "mapping.h" nogil:
    ctypedef struct hd_mapping:
        int32_t n
        int32_t huge
        int32_t blind
        int32_t *fd
        uint8_t **base
        uint64_t *size
        uint8_t **reserved
        uint64_t *reserved_bytes
    ctypedef struct hd_populated:
        uint64_t read
        uint64_t cached
        uint64_t failed_at
    hd_mapping *hd_mapping_new(int32_t n)
    int hd_mapping_open(hd_mapping *m, int32_t file, const char *path)
    void hd_mapping_free(hd_mapping *m)
    int hd_mapping_small_pages(hd_mapping *m)
    int hd_populate(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, float cover, hd_populated *out)
    int hd_evict(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, uint64_t *freed)
    int hd_lock(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes, int on_fault)
    int hd_unlock(const hd_mapping *m, int32_t file, uint64_t offset, uint64_t bytes)
    int hd_cached(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset, const uint64_t *bytes,
                  uint64_t *cached)
    int hd_cachestat(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset,
                     const uint64_t *bytes, uint64_t *out)
    int hd_mapped(const hd_mapping *m, int64_t n, const int32_t *file, const uint64_t *offset, const uint64_t *bytes,
                  uint64_t *mapped)
    int hd_page_nodes(int64_t n, const uint64_t *address, int32_t *node)

cdef extern from "populate.h" nogil:
    int hd_populate_refused()


cdef class Mapping:
    cdef hd_mapping *c
    cdef readonly list paths
    cdef hd_mapping *get(self) except NULL

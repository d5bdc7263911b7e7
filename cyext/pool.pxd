from libc.stdint cimport int32_t, int64_t, uint8_t


cdef extern from "pool.h" nogil:
    ctypedef struct hd_pool:
        uint8_t *base
        size_t block_bytes
        int32_t n_blocks, n_used, n_warm
        int32_t *holders
        uint8_t *touched
    int hd_pool_open(hd_pool *p, int32_t n_blocks, size_t block_bytes)
    void hd_pool_close(hd_pool *p)
    uint8_t *hd_pool_at(const hd_pool *p, int32_t block)
    int32_t hd_pool_free(const hd_pool *p)
    int hd_pool_alone(const hd_pool *p, int32_t block)
    int32_t hd_pool_take(hd_pool *p)
    void hd_pool_share(hd_pool *p, int32_t block)
    void hd_pool_put(hd_pool *p, int32_t block)
    int32_t hd_pool_oldest(hd_pool *p, double seconds, int32_t keep, int32_t most, int32_t *out)
    void hd_pool_release(const hd_pool *p, const int32_t *blocks, int32_t n)
    void hd_pool_cooled(hd_pool *p, const int32_t *blocks, int32_t n)
    size_t hd_pool_resident(const hd_pool *p)


cdef class Pool:
    cdef hd_pool c
    cdef int32_t held(self, int block) except -1

"""Opens one GGUF file's header: metadata and tensors with their places in the file.

Owns the read-only mapping of the file while values are read from it; refuses (HeaderError) every header whose numbers
do not fit the file. Knows nothing of split files, models or what a key means.
"""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport EINVAL, errno
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from libcpp cimport bool as cbool

import os
import stat

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int file, int64_t offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    int PROT_READ, MAP_SHARED, MADV_NORMAL, MADV_DONTNEED
    void *MAP_FAILED

cdef extern from "populate.h" nogil:
    int hd_map_pages(const uint8_t *address, uint64_t size)

cdef extern from "gguf_header.h" nogil:
    cdef enum:
        HD_GGUF_U8, HD_GGUF_I8, HD_GGUF_U16, HD_GGUF_I16, HD_GGUF_U32, HD_GGUF_I32, HD_GGUF_F32, HD_GGUF_BOOL
        HD_GGUF_STRING, HD_GGUF_ARRAY, HD_GGUF_U64, HD_GGUF_I64, HD_GGUF_F64
    ctypedef struct hd_gguf_text:
        uint64_t at
        uint64_t length
    ctypedef struct hd_gguf_key:
        hd_gguf_text name
        uint32_t type
        uint32_t element
        uint64_t count
        hd_gguf_text value
    ctypedef struct hd_gguf_tensor:
        hd_gguf_text name
        int32_t type
        uint32_t n_dims
        uint64_t ne[4]
        uint64_t offset
        uint64_t nbytes
    ctypedef struct hd_gguf_header:
        uint32_t version
        uint64_t alignment
        uint64_t header_end
        uint64_t data_offset
        uint64_t n_keys
        uint64_t n_tensors
        hd_gguf_key *keys
        hd_gguf_tensor *tensors
    ctypedef struct hd_gguf_error:
        uint64_t byte
        bint in_tensor
        hd_gguf_text where
        char what[200]
    ctypedef cbool (*hd_gguf_fetch)(void *self, uint64_t end) noexcept nogil
    int hd_gguf_parse(const uint8_t *data, uint64_t size, hd_gguf_fetch fetch, void *self, hd_gguf_header *out,
                      hd_gguf_error *error)
    void hd_gguf_free(hd_gguf_header *header)
    cbool hd_gguf_strings(const uint8_t *data, const hd_gguf_key *array, hd_gguf_text *out)
    uint32_t hd_gguf_size(uint32_t type)
    uint64_t HD_GGUF_STEP

cdef extern from "types.h" nogil:
    ctypedef struct hd_type_info:
        const char *name
        int32_t block
        int32_t bytes
    enum:
        HD_TYPE_COUNT
    hd_type_info hd_types[]

ELEMENT_NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
cdef tuple NUMPY_NAMES = ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8")


class HeaderError(ValueError):
    """A file that is no GGUF file, or one whose header does not fit it.

    `byte`: where in the file it goes wrong; `what`: in words; `tensor`, `key`: the entry that it concerns, or None.
    """

    def __init__(self, what, byte=0, tensor=None, key=None):
        self.what = what
        self.byte = byte
        self.tensor = tensor
        self.key = key
        place = f"tensor {tensor}: " if tensor else f"key {key}: " if key else ""
        super().__init__(f"{place}{what} (byte {byte})")


cdef struct Fetched:
    const uint8_t *data
    uint64_t ready


cdef cbool _populate(const uint8_t *data, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t page = start & ~<uint64_t>4095
    return end <= page or hd_map_pages(data + page, end - page) == 0


cdef cbool _fetch(void *self, uint64_t end) noexcept nogil:
    """Bring the next piece in with one request: a failing disk gives an error here instead of SIGBUS later."""
    cdef Fetched *fetched = <Fetched *>self
    if not _populate(fetched.data, fetched.ready, end):
        return False
    fetched.ready = end
    return True


@cython.final
cdef class _Map:
    """A file's bytes, read-only, from its start; unmapped with the last object that reads from it."""
    cdef const uint8_t *data
    cdef uint64_t size
    cdef uint64_t shown

    def __cinit__(self, int descriptor, uint64_t size):
        cdef void *address = mmap(NULL, size, PROT_READ, MAP_SHARED, descriptor, 0)
        if address == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.data = <const uint8_t *>address
        self.size = size
        self.shown = 0

    def __dealloc__(self):
        if self.data != NULL:
            munmap(<void *>self.data, self.size)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.data, <Py_ssize_t>self.shown, 1, flags)

    cdef str text(self, hd_gguf_text where):
        return PyUnicode_DecodeUTF8(<const char *>self.data + where.at, <Py_ssize_t>where.length, "replace")

    cdef void forget(self) noexcept:
        """Unmap the pages until the next read: what is mapped twice can neither be evicted nor moved to another node."""
        madvise(<void *>self.data, self.size, MADV_DONTNEED)

    cdef int reread(self, uint64_t start, uint64_t end) except -1:
        """Before a late read: the file may have shrunk since it was parsed."""
        if not _populate(self.data, start, end):
            raise HeaderError("the file has shrunk, or cannot be read any more", start)
        return 0


@cython.final
cdef class Array:
    """An array value of the metadata, decoded only when asked: len(), [i], iteration, tolist(), numpy(), bytes().

    Strings decode as UTF-8 with U+FFFD for bytes that are none; bytes() gives them as they are.
    """
    cdef _Map map
    cdef hd_gguf_key key
    cdef hd_gguf_text *texts

    def __dealloc__(self):
        free(self.texts)

    def __len__(self):
        return self.key.count

    @property
    def element(self):
        """The elements' type as a word: u8 … f64, bool, string."""
        return ELEMENT_NAMES[self.key.element]

    cdef int open(self) except -1:
        self.map.reread(self.key.value.at, self.key.value.at + self.key.value.length)
        if self.key.element != HD_GGUF_STRING or self.texts != NULL:
            return 0
        cdef cbool unchanged
        cdef hd_gguf_text *texts = <hd_gguf_text *>malloc(max(self.key.count, 1) * sizeof(hd_gguf_text))
        if texts == NULL:
            raise MemoryError
        with nogil:
            unchanged = hd_gguf_strings(self.map.data, &self.key, texts)
        if not unchanged:
            free(texts)
            raise HeaderError("the file has been changed since it was opened", self.key.value.at)
        self.texts = texts
        return 0

    def __getitem__(self, Py_ssize_t i):
        if i < 0:
            i += <Py_ssize_t>self.key.count
        if i < 0 or <uint64_t>i >= self.key.count:
            raise IndexError(i)
        self.open()
        if self.key.element == HD_GGUF_STRING:
            return self.map.text(self.texts[i])
        cdef uint32_t width = hd_gguf_size(self.key.element)
        return _scalar(self.key.element, self.map.data + self.key.value.at + <uint64_t>i * width)

    def __iter__(self):
        return iter(self.tolist())

    def tolist(self):
        """All values as Python objects."""
        self.open()
        cdef uint64_t i
        if self.key.element == HD_GGUF_STRING:
            return [self.map.text(self.texts[i]) for i in range(self.key.count)]
        return self.numpy().tolist()

    def bytes(self):
        """All strings as bytes. TypeError for an array of numbers."""
        if self.key.element != HD_GGUF_STRING:
            raise TypeError(f"an array of {self.element} has no strings")
        self.open()
        cdef uint64_t i
        return [PyBytes_FromStringAndSize(<const char *>self.map.data + self.texts[i].at,
                                          <Py_ssize_t>self.texts[i].length) for i in range(self.key.count)]

    def numpy(self):
        """All numbers as a numpy array (a copy). TypeError for strings."""
        if self.key.element == HD_GGUF_STRING:
            raise TypeError("an array of strings has no numpy form")
        import numpy
        self.open()
        raw = PyBytes_FromStringAndSize(<const char *>self.map.data + self.key.value.at,
                                        <Py_ssize_t>self.key.value.length)
        if self.key.element == HD_GGUF_BOOL:
            return numpy.frombuffer(raw, "u1") != 0
        return numpy.frombuffer(raw, NUMPY_NAMES[self.key.element]).copy()

    def __repr__(self):
        return f"<{len(self)} x {self.element}>"


cdef object _scalar(uint32_t type, const uint8_t *p):
    cdef int8_t i8
    cdef int16_t i16
    cdef uint16_t u16
    cdef int32_t i32
    cdef uint32_t u32
    cdef int64_t i64
    cdef uint64_t u64
    cdef float f32
    cdef double f64
    if type == HD_GGUF_U8:
        return p[0]
    if type == HD_GGUF_BOOL:
        return p[0] != 0
    if type == HD_GGUF_I8:
        memcpy(&i8, p, 1)
        return i8
    if type == HD_GGUF_U16:
        memcpy(&u16, p, 2)
        return u16
    if type == HD_GGUF_I16:
        memcpy(&i16, p, 2)
        return i16
    if type == HD_GGUF_U32:
        memcpy(&u32, p, 4)
        return u32
    if type == HD_GGUF_I32:
        memcpy(&i32, p, 4)
        return i32
    if type == HD_GGUF_U64:
        memcpy(&u64, p, 8)
        return u64
    if type == HD_GGUF_I64:
        memcpy(&i64, p, 8)
        return i64
    if type == HD_GGUF_F32:
        memcpy(&f32, p, 4)
        return f32
    memcpy(&f64, p, 8)
    return f64


@cython.final
cdef class Header:
    """What parse() found. Tensors: (name, type number, shape with columns first, offset in the file, bytes)."""
    cdef _Map map
    cdef readonly int version
    cdef readonly object alignment, data_offset, header_end, file_size
    cdef readonly int n_tensors
    cdef readonly list tensors
    cdef readonly dict metadata

    @property
    def raw(self):
        """The header's bytes, from the file's start to the last tensor's description, as a memoryview."""
        self.map.reread(0, self.map.shown)
        return memoryview(self.map)


cdef Array _array(_Map held, hd_gguf_key *key):
    cdef Array array = Array.__new__(Array)
    array.map = held
    array.key = key[0]
    return array


cdef object _fill(Header header, _Map held, hd_gguf_header *found):
    cdef uint64_t i
    cdef hd_gguf_key *key
    cdef hd_gguf_tensor *t
    cdef dict metadata = {}
    for i in range(found.n_keys):
        key = &found.keys[i]
        name = held.text(key.name)
        if name in metadata:
            raise HeaderError("the key occurs twice", key.name.at, key=name)
        if key.type == HD_GGUF_ARRAY:
            metadata[name] = _array(held, key)
        elif key.type == HD_GGUF_STRING:
            metadata[name] = held.text(key.value)
        else:
            metadata[name] = _scalar(key.type, held.data + key.value.at)
    cdef list tensors = []
    cdef set names = set()
    for i in range(found.n_tensors):
        t = &found.tensors[i]
        name = held.text(t.name)
        if name in names:
            raise HeaderError("the tensor occurs twice", t.name.at, tensor=name)
        names.add(name)
        if t.n_dims == 0:
            shape = ()
        elif t.n_dims == 1:
            shape = (t.ne[0],)
        elif t.n_dims == 2:
            shape = (t.ne[0], t.ne[1])
        elif t.n_dims == 3:
            shape = (t.ne[0], t.ne[1], t.ne[2])
        else:
            shape = (t.ne[0], t.ne[1], t.ne[2], t.ne[3])
        tensors.append((name, t.type, shape, t.offset, t.nbytes))
    header.map = held
    header.version = found.version
    header.alignment = found.alignment
    header.data_offset = found.data_offset
    header.header_end = found.header_end
    header.file_size = held.size
    header.n_tensors = found.n_tensors
    header.tensors = tensors
    header.metadata = metadata
    held.shown = found.header_end
    return header


def parse(path):
    """The Header of the GGUF file at `path`.

    HeaderError: no GGUF file (an empty one included), a version or byte order that is not read, or an entry that does
    not fit; OSError: the file cannot be opened, or is no regular file (IsADirectoryError for a directory).
    """
    cdef hd_gguf_header found
    cdef hd_gguf_error error
    cdef Fetched fetched
    cdef _Map held
    cdef int failed
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        info = os.fstat(descriptor)
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(21, os.strerror(21), os.fspath(path))
        if not stat.S_ISREG(info.st_mode):
            raise OSError(EINVAL, "not a regular file", os.fspath(path))
        if info.st_size == 0:
            raise HeaderError("the file is empty", 0)
        held = _Map(descriptor, info.st_size)
    finally:
        os.close(descriptor)
    fetched.data = held.data
    fetched.ready = 0
    with nogil:
        failed = hd_gguf_parse(held.data, held.size, _fetch, &fetched, &found, &error)
    if failed:
        where = held.text(error.where) if error.where.length else None
        what = error.what[:].decode("utf-8", "replace")
        raise HeaderError(what, error.byte, where if error.in_tensor else None, None if error.in_tensor else where)
    try:
        return _fill(Header.__new__(Header), held, &found)
    finally:
        hd_gguf_free(&found)
        held.forget()


def tensor_types():
    """(number, name, values in a block, bytes of a block) of every known tensor type."""
    return [(i, hd_types[i].name.decode(), hd_types[i].block, hd_types[i].bytes)
            for i in range(HD_TYPE_COUNT) if hd_types[i].name != NULL]

/* Anonymous memory that is there only once it is touched, in huge pages where the kernel grants them. */
#pragma once
#include <stddef.h>

void *hd_memory_new(size_t bytes);          /* zeroed, page aligned; NULL when there is none */
void hd_memory_small_pages(void *memory);    /* no huge pages: its parts belong to several nodes */
void hd_memory_free(void *memory);          /* NULL is nothing */
void hd_memory_release(void *memory);       /* give the pages back, keep the addresses; contents become zero */
size_t hd_memory_resident(const void *memory);   /* bytes of it that are in memory; all of it where the kernel does not tell */
size_t hd_pages_resident(const void *pages, size_t bytes);   /* the same of any whole pages */
void hd_memory_trim(void);                  /* what malloc keeps of freed memory goes to the kernel */

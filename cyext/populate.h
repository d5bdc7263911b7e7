/* Pages of a file mapping made present. Mechanism only. */
#pragma once
#include <stdint.h>

/* The system knows no MADV_POPULATE_READ: pages are touched one by one under the fault guard instead. */
int hd_populate_refused(void);

/* Map [address, address + bytes), reading what is not cached; address is page aligned. 0, or EFAULT where a page cannot be
 * read (the disk fails, or the file has shrunk), or another errno. Never SIGBUS. */
int hd_map_pages(const uint8_t *address, uint64_t bytes);

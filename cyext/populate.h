/* Pages of a file mapping made present. Mechanism only. */
#pragma once
#include <stdint.h>

/* Map [address, address + bytes), reading what is not cached; address is page aligned. 0, or EFAULT where a page cannot be
 * read (the disk fails, or the file has shrunk), or another errno. Never SIGBUS. */
int hd_map_pages(const uint8_t *address, uint64_t bytes);

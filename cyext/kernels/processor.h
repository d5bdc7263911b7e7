/* What this processor has and its kernel permits. Answers are NULL, or a reason why not. */
#pragma once

const char *hd_processor_lacks_avx2(void);
const char *hd_processor_lacks_avx512(void);
const char *hd_processor_lacks_avx512bf16(void);
/* Asks the kernel to permit tiles to the whole process: threads that run already and those to come. */
const char *hd_processor_lacks_tiles(void);

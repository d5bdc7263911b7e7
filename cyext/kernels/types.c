/* Names and block sizes of the tensor types (gguf-py/gguf/constants.py, GGML_QUANT_SIZES). */
#include "types.h"

const hd_type_info hd_types[HD_TYPE_COUNT] = {
    [HD_F32] = {"F32", 1, 4},          [HD_F16] = {"F16", 1, 2},          [HD_Q4_0] = {"Q4_0", 32, 18},
    [HD_Q4_1] = {"Q4_1", 32, 20},      [HD_Q5_0] = {"Q5_0", 32, 22},      [HD_Q5_1] = {"Q5_1", 32, 24},
    [HD_Q8_0] = {"Q8_0", 32, 34},      [HD_Q8_1] = {"Q8_1", 32, 40},      [HD_Q2_K] = {"Q2_K", 256, 84},
    [HD_Q3_K] = {"Q3_K", 256, 110},    [HD_Q4_K] = {"Q4_K", 256, 144},    [HD_Q5_K] = {"Q5_K", 256, 176},
    [HD_Q6_K] = {"Q6_K", 256, 210},    [HD_Q8_K] = {"Q8_K", 256, 292},    [HD_IQ2_XXS] = {"IQ2_XXS", 256, 66},
    [HD_IQ2_XS] = {"IQ2_XS", 256, 74}, [HD_IQ3_XXS] = {"IQ3_XXS", 256, 98}, [HD_IQ1_S] = {"IQ1_S", 256, 50},
    [HD_IQ4_NL] = {"IQ4_NL", 32, 18},  [HD_IQ3_S] = {"IQ3_S", 256, 110},  [HD_IQ2_S] = {"IQ2_S", 256, 82},
    [HD_IQ4_XS] = {"IQ4_XS", 256, 136}, [HD_I8] = {"I8", 1, 1},           [HD_I16] = {"I16", 1, 2},
    [HD_I32] = {"I32", 1, 4},          [HD_I64] = {"I64", 1, 8},          [HD_F64] = {"F64", 1, 8},
    [HD_IQ1_M] = {"IQ1_M", 256, 56},   [HD_BF16] = {"BF16", 1, 2},        [HD_TQ1_0] = {"TQ1_0", 256, 54},
    [HD_TQ2_0] = {"TQ2_0", 256, 66},   [HD_MXFP4] = {"MXFP4", 32, 17},    [HD_NVFP4] = {"NVFP4", 64, 36},
};

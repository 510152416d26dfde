#include "cell/kernels.cuh"

DA2S_KERNELS(8)

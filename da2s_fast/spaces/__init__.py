"""Search spaces and genotypes."""

from da2s_fast.spaces.genotype import Genotype
from da2s_fast.spaces.space import DA2S, DARTS, NAS_BENCH_201, SPACES, SearchSpace, get_space

__all__ = ["DA2S", "DARTS", "NAS_BENCH_201", "SPACES", "Genotype", "SearchSpace", "get_space"]

"""The super-networks that several tables are about."""

from benchmarks.cases import SearchNetwork

DA2S = SearchNetwork("da2s", "da2s")
PC_DARTS = SearchNetwork("darts", "pc-darts", partial_channels=4)
NAS_BENCH_201 = SearchNetwork("nas-bench-201", "da2s", cells=5)

TITLES = {
    DA2S: "DA2S super-network, C=16, L=8, 7 operations, 32x32",
    PC_DARTS: "PC-DARTS super-network, C=16, L=8, 8 operations, partial channels K=4, 32x32",
    NAS_BENCH_201: "NAS-Bench-201 super-network, C=16, N=5, 5 operations, 32x32",
}

"""The size of derived networks, told before anybody trains them."""

import torch

from da2s_fast.spaces import Genotype
from da2s_fast.train import RetrainSettings, count_multiply_adds, count_parameters, derived_size
from da2s_fast.train.session import RetrainSession

from .conftest import GENOTYPE, NAS_BENCH_201


def test_it_is_the_size_of_the_network_that_a_training_builds(digits):
    for text in (GENOTYPE, NAS_BENCH_201):
        genotype = Genotype.parse(text)
        session = RetrainSession(genotype, RetrainSettings().resolved(genotype, digits), digits)
        assert derived_size(genotype, digits) == {
            "channels": session.info.channels,
            "cells": session.info.cells,
            "parameters": count_parameters(session.model),
            "multiply_adds": count_multiply_adds(session.model, session.info.input_shape),
        }


def test_random_states_stay_as_they_were(digits):
    state = torch.get_rng_state()
    derived_size(Genotype.parse(GENOTYPE), digits)
    assert torch.equal(torch.get_rng_state(), state)

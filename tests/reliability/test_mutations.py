"""A damaged model is refused when it is loaded, or says exactly what the undamaged one says."""

import pytest

from reliability import functions, mutations, studies
from reliability.tally import Tally

# Warnings of other packages would end trials with errors that no user sees.
pytestmark = pytest.mark.filterwarnings("ignore")
N_EACH, SEED = 80, 0


@pytest.mark.parametrize("name", functions.built_in_models())
def test_a_damaged_model_is_refused_or_the_same(name):
    studies.quieten()
    tally = Tally().extend(mutations.run(N_EACH, SEED, [name]))
    assert tally.n_trials > N_EACH // 2
    assert not tally.failures, tally.summary()

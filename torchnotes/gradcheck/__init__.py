"""A gradient checker that measures its own errors, knows kinks from bugs, and names the culprit.

`check_gradients` checks a whole model, `check_function` one function or op, `assert_gradients` either in a test.
"""

from .check import assert_gradients as assert_gradients
from .check import check_gradients as check_gradients
from .compare import gradient_ratio as gradient_ratio
from .differences import numerical_gradient as numerical_gradient
from .function import check_function as check_function
from .recheck import GradcheckInTrainingWarning as GradcheckInTrainingWarning
from .recheck import recheck_after as recheck_after
from .report import GradientMismatch as GradientMismatch
from .report import GradientReport as GradientReport

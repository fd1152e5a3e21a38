"""Linear inverse problems: inpainting, deblurring, super-resolution, and any y = A x + noise, with one denoiser."""

from .methods import DPS as DPS
from .methods import EXACT as EXACT
from .methods import LEARNED as LEARNED
from .methods import MomentMatching as MomentMatching
from .methods import PiGDM as PiGDM
from .methods import Posterior as Posterior
from .methods import Replacement as Replacement
from .methods import Trust as Trust
from .operators import Blur as Blur
from .operators import Downsample as Downsample
from .operators import Linear as Linear
from .operators import Mask as Mask
from .operators import Operator as Operator
from .regions import Box as Box
from .regions import Drawn as Drawn
from .regions import Half as Half
from .regions import Random as Random
from .regions import Region as Region
from .scores import RestorationScore as RestorationScore
from .scores import energy_scores as energy_scores
from .scores import score_restorations as score_restorations
from .scores import unknown_part as unknown_part

METHODS: dict[str, type[Posterior]] = {
    "moment": MomentMatching,
    "pigdm": PiGDM,
    "dps": DPS,
    "replacement": Replacement,
}

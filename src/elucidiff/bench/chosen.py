"""The settings that the search on learning noise chose. The test noise had no part in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .settings import named, steps_rules
from .solvers import Setting

Levels = Mapping[str, Mapping[int, str]]


class Default(NamedTuple):
    """One setting for every problem and budget: solver, time steps, end; with steps that were learned, their levels.

    The steps may have a name of their own, "common": then only the stored levels exist.
    """

    name: str
    levels: Levels = {}
    track: str = "T1"

    def setting(self, problem: str, nfe: int, fit: bool = False) -> Setting | None:
        """The setting for a problem and a budget; None where levels were not learned. `fit` learns them anew."""
        solver, steps, end = self.name.split(", ")
        if not self.levels or (fit and steps in steps_rules()):
            return named(self.name)
        stored = self.levels.get(problem, {}).get(nfe)
        return None if stored is None else named(f"{solver}, levels {stored}, {end}").renamed(self.name, self.track)


# fmt: off
# ruff: noqa: E501
BEST: Levels = {
    "gmm_cifar_diagonal": {
        5: "gaussian-3 natural/natural corrected spectrum, levels 80 11.03 2.3576 0.53374 0.011755, to 0",
        6: "gaussian-3 natural/natural corrected spectrum, levels 80 13.633 3.8417 1.1704 0.28823 0.0044882, to 0",
        8: "gaussian-3 natural/natural corrected spectrum, levels 80 16.675 5.5786 1.8501 0.65782 0.361 0.18617 0.0028416, to 0",
        10: "gaussian-3 natural/natural corrected spectrum, levels 80 17.129 5.8731 2.0677 0.95436 0.57459 0.3068 0.17553 0.033801 0.0020003, to 0",
        12: "gaussian-3 natural/natural corrected spectrum, rho 10, to 0.002",
        16: "gaussian-3 natural/natural corrected spectrum, rho 10, to 0.002",
        20: "gaussian-3 natural/natural corrected spectrum, rho 10, to 0.002",
        35: "gaussian-3 natural/natural corrected spectrum, rho 10, to 0.002",
        36: "gaussian-3 natural/natural corrected spectrum, rho 10, to 0.002",
    },
    "gmm_cifar_full": {
        5: "gaussian-3 natural/natural corrected spectrum, levels 80 6.2781 1.8938 0.68668 0.079492, to 0",
        6: "gaussian-3 natural/natural corrected spectrum, levels 80 8.1636 2.5254 1.1215 0.47402 0.055628, to 0",
        8: "gaussian-3 natural/natural corrected spectrum, levels 80 14.299 4.9526 2.6289 1.3613 0.92842 0.38681 0.047023, to 0",
        10: "gaussian-3 natural/natural corrected spectrum, levels 80 18.711 7.2274 3.9488 2.3099 1.3604 1.1156 0.58659 0.26562 0.033563, to 0",
        12: "gaussian-3 natural/natural corrected spectrum, rho 7, to 0.002",
        16: "gaussian-3 natural/natural corrected spectrum, rho 7, to 0.002",
        20: "gaussian-3 natural/natural corrected spectrum, rho 7, to 0.002",
        35: "gaussian-3 natural/natural corrected spectrum, rho 7, to 0.002",
        36: "gaussian-3 natural/natural corrected spectrum, rho 7, to 0.002",
    },
    "digits_mlp": {
        5: "gaussian-3 natural/natural corrected spectrum, levels 80 2.5442 1.0017 0.32387 0.17859, to 0",
        6: "gaussian-3 natural/natural corrected spectrum, levels 80 2.9605 1.094 0.4937 0.14874 0.083705, to 0",
        8: "gaussian-3 natural/natural corrected spectrum, levels 80 4.3693 1.5653 1.0035 0.53048 0.25979 0.075422 0.03316, to 0",
        10: "gaussian-3 natural/natural corrected spectrum, levels 80 6.1287 2.2987 1.1976 0.92565 0.49451 0.29454 0.12291 0.045696 0.010679, to 0",
        12: "gaussian-3 natural/natural corrected spectrum, levels 80 10.733 3.3971 1.868 1.123 0.92987 0.50717 0.35804 0.18157 0.08793 0.034926 0.0087049, to 0",
        16: "unipc-3 bh2, levels 80 24.576 5.6326 2.6164 1.9704 1.2052 0.90249 0.58716 0.38404 0.27349 0.12836 0.096385 0.052859 0.019385 0.013563 0.0061928, to 0",
        20: "gaussian-3 natural/natural corrected spectrum, levels 80 12.574 9.6803 7.3124 5.4198 3.9414 2.8123 1.9689 1.3525 0.91159 0.60284 0.39116 0.24903 0.15556 0.095347 0.057339 0.033833 0.019588 0.011127 0.0062016, to 0",
        35: "gaussian-3 natural/natural corrected spectrum, rho 10, to 0.002",
        36: "unipc-3 bh2, levels 80 44.455 33.75 25.631 19.47 14.795 11.245 8.5498 6.5024 4.9467 3.7643 2.8653 2.1817 1.6616 1.2659 0.96473 0.73541 0.56076 0.42772 0.32633 0.24905 0.19013 0.14518 0.1109 0.084734 0.064762 0.049511 0.037863 0.028963 0.022162 0.016963 0.012987 0.0099463 0.0076195 0.0058388 0.0044755, to 0",
    },
    "gmm_2d": {
        5: "gaussian-3 natural/natural corrected spectrum, levels 80 1.0106 0.42074 0.25804 0.14902, to 0",
        6: "gaussian-3 natural/natural corrected spectrum, levels 80 1.4466 0.64002 0.34312 0.17436 0.085484, to 0",
        8: "gaussian-3 natural/natural corrected spectrum, levels 80 1.7412 1.4731 0.81781 0.4118 0.26357 0.093759 0.051881, to 0",
        10: "ipndm-4, levels 80 3.9089 1.8661 1.2577 0.73915 0.43933 0.31257 0.18828 0.059878 0.028763, to 0",
        12: "ipndm-4, levels 80 4.4868 2.6615 1.8693 1.1841 0.92603 0.68026 0.42948 0.30682 0.18655 0.066478 0.034362, to 0",
        16: "ipndm-4, levels 80 5.5908 4.1104 3.4247 2.395 1.8718 1.3477 1.1756 0.81692 0.49754 0.35617 0.2447 0.16417 0.095062 0.044477 0.025484, to 0",
        20: "unipc-3 bh2, levels 80 2.484 2.1486 1.828 1.5298 1.2593 1.0197 0.81213 0.63623 0.49027 0.37161 0.27706 0.20318 0.14656 0.10399 0.07258 0.049826 0.033646 0.022348 0.0146, to 0",
        35: "gaussian-3 natural/natural corrected spectrum, levels 80 3.0405 2.7098 2.403 2.1203 1.8616 1.6262 1.4135 1.2225 1.0521 0.90087 0.76754 0.65068 0.54887 0.46067 0.38472 0.31968 0.26432 0.21745 0.178 0.14498 0.1175 0.09475 0.076024 0.060695 0.048215 0.03811 0.029973 0.023455 0.018263 0.01415 0.010908 0.0083669 0.0063858 0.0048494, to 0",
        36: "gaussian-3 natural/natural corrected spectrum, levels 80 2.8622 2.5079 2.1906 1.9073 1.6555 1.4323 1.2353 1.0621 0.91023 0.77763 0.66225 0.5622 0.47576 0.40134 0.3375 0.28291 0.2364 0.19691 0.1635 0.13533 0.11166 0.091843 0.075301 0.061544 0.050141 0.040722 0.032967 0.026605 0.021403 0.017164 0.013721 0.010934 0.0086852 0.0068773 0.0054286, to 0",
    },
}
"""Names of the settings with the least error on learning noise. Those on `levels` were fitted to it: 32 or 64 paths,
in the plane 2,048, too."""

FITTED: Levels = {
    "gmm_cifar_diagonal": {
        5: "80 11.03 2.3576 0.53374 0.011755",
        6: "80 13.633 3.8417 1.1704 0.28823 0.0044882",
        8: "80 16.675 5.5786 1.8501 0.65782 0.361 0.18617 0.0028416",
        10: "80 17.129 5.8731 2.0677 0.95436 0.57459 0.3068 0.17553 0.033801 0.0020003",
    },
    "gmm_cifar_full": {
        5: "80 6.2781 1.8938 0.68668 0.079492",
        6: "80 8.1636 2.5254 1.1215 0.47402 0.055628",
        8: "80 14.299 4.9526 2.6289 1.3613 0.92842 0.38681 0.047023",
        10: "80 18.711 7.2274 3.9488 2.3099 1.3604 1.1156 0.58659 0.26562 0.033563",
    },
    "digits_mlp": {
        5: "80 2.5442 1.0017 0.32387 0.17859",
        6: "80 2.9605 1.094 0.4937 0.14874 0.083705",
        8: "80 4.3693 1.5653 1.0035 0.53048 0.25979 0.075422 0.03316",
        10: "80 6.1287 2.2987 1.1976 0.92565 0.49451 0.29454 0.12291 0.045696 0.010679",
        12: "80 10.733 3.3971 1.868 1.123 0.92987 0.50717 0.35804 0.18157 0.08793 0.034926 0.0087049",
        16: "80 8.5128 6.2482 4.451 3.0774 2.065 1.3449 0.85011 0.52152 0.31052 0.17945 0.10064 0.054786 0.028944 0.014842 0.0073861",
        20: "80 12.574 9.6803 7.3124 5.4198 3.9414 2.8123 1.9689 1.3525 0.91159 0.60284 0.39116 0.24903 0.15556 0.095347 0.057339 0.033833 0.019588 0.011127 0.0062016",
        36: "80 36.456 29.9 24.418 19.855 16.075 12.958 10.401 8.3126 6.6147 5.241 4.1347 3.2478 2.5402 1.9782 1.5339 1.1842 0.91035 0.6968 0.53104 0.40297 0.30447 0.22905 0.17157 0.12796 0.095029 0.070266 0.051732 0.037923 0.02768 0.020116 0.014557 0.010488 0.0075241 0.0053745 0.0038225",
    },
    "gmm_2d": {
        5: "80 1.0106 0.42074 0.25804 0.14902",
        6: "80 1.4466 0.64002 0.34312 0.17436 0.085484",
        8: "80 1.7412 1.4731 0.81781 0.4118 0.26357 0.093759 0.051881",
        10: "80 1.5538 1.149 0.84914 0.75324 0.39718 0.28413 0.14423 0.042258 0.036405",
        12: "80 3.3064 2.4003 1.6769 1.1275 0.72949 0.45422 0.27218 0.15695 0.087098 0.046515 0.023906",
        16: "80 3.1543 2.4449 1.8601 1.3891 1.0183 0.73267 0.51745 0.35872 0.24409 0.16303 0.10688 0.068783 0.043447 0.026938 0.016394",
        20: "80 2.2832 1.8366 1.4638 1.1559 0.90448 0.70123 0.53867 0.41 0.3092 0.23104 0.17106 0.12549 0.091211 0.065689 0.046875 0.033143 0.023218 0.016116 0.011084",
        35: "80 3.0405 2.7098 2.403 2.1203 1.8616 1.6262 1.4135 1.2225 1.0521 0.90087 0.76754 0.65068 0.54887 0.46067 0.38472 0.31968 0.26432 0.21745 0.178 0.14498 0.1175 0.09475 0.076024 0.060695 0.048215 0.03811 0.029973 0.023455 0.018263 0.01415 0.010908 0.0083669 0.0063858 0.0048494",
        36: "80 2.8622 2.5079 2.1906 1.9073 1.6555 1.4323 1.2353 1.0621 0.91023 0.77763 0.66225 0.5622 0.47576 0.40134 0.3375 0.28291 0.2364 0.19691 0.1635 0.13533 0.11166 0.091843 0.075301 0.061544 0.050141 0.040722 0.032967 0.026605 0.021403 0.017164 0.013721 0.010934 0.0086852 0.0068773 0.0054286",
    },
}
"""What the fit to 64 (32) teacher paths of the learning noise gave for the default."""

PROGRAMMED: Levels = {
    "digits_mlp": {
        5: "80 2.3419 1.0985 0.56167 0.21933",
        6: "80 3.1027 1.5017 0.79181 0.39143 0.14489",
        8: "80 3.5565 1.747 1.0985 0.66829 0.39143 0.21933 0.073997",
        10: "80 12.242 4.6371 2.3419 1.2866 0.79181 0.46998 0.21933 0.073997 0.015316",
    },
    "gmm_2d": {
        5: "80 1.747 0.79181 0.46998 0.21933",
        6: "80 2.0258 0.9344 0.56167 0.32441 0.17881",
        8: "80 2.6994 1.2866 0.79181 0.46998 0.32441 0.21933 0.11664",
        10: "80 3.1027 1.5017 0.9344 0.66829 0.46998 0.32441 0.21933 0.11664 0.035187",
    },
}

EQUAL: Levels = {
    "digits_mlp": {
        5: "80 2.466 1.0604 0.48059 0.15621",
        6: "80 3.0234 1.358 0.7087 0.33675 0.1088",
        8: "80 4.2773 1.9358 1.1305 0.68174 0.38833 0.18802 0.059369",
        10: "80 11.015 4.1051 2.1211 1.2003 0.68444 0.36552 0.16584 0.055135 0.012257",
    },
    "gmm_2d": {
        5: "80 1.6486 0.73419 0.36786 0.17316",
        6: "80 1.9616 0.91219 0.51215 0.27866 0.13597",
        8: "80 2.4831 1.1996 0.73027 0.46491 0.28858 0.17613 0.079528",
        10: "80 3.0789 1.5228 0.96635 0.66393 0.46236 0.31696 0.22004 0.12954 0.050736",
    },
}
"""What `tuning` gave from the paths of seeds 0 to 63, by dynamic programming and by equal errors."""
# fmt: on

GAUSSIAN = "gaussian-3 natural/natural corrected spectrum"
DEFAULTS = (
    Default(f"{GAUSSIAN}, fitted, to 0", FITTED),
    Default(f"{GAUSSIAN}, dynamic programming, to 0", PROGRAMMED),
    Default(f"{GAUSSIAN}, equal error, to 0", EQUAL),
    Default(f"{GAUSSIAN}, rho 7, to 0.002"),
    Default("ipndm-4, rho 7, to 0.002"),
    Default("ipndm-3, logsnr, to 0.002"),
    Default("unipc-3 bh2, logsnr, 0.02 to 0"),
    Default("dpmpp_2m, logsnr, 0.02 to 0"),
)
DEFAULT = DEFAULTS[0].name

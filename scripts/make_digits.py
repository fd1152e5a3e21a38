"""Make src/elucidiff/data/digits.npz from scikit-learn's copy of the UCI handwritten digits.

    python scripts/make_digits.py

Needs scikit-learn (pip install 'elucidiff[scripts]'); neither the package nor its tests do. The
output is the same bytes every time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

DATA = Path(__file__).parents[1] / "src" / "elucidiff" / "data"

NOTE = """\
digits.npz: 1,797 handwritten digits, 8x8 pixels, 17 grey levels

images  uint8 (1797, 8, 8), values 0 (paper) to 16 (full ink), as in the source
labels  uint8 (1797,), the digit 0 to 9

Source: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49. The 1,797 samples are its test part, as
distributed with scikit-learn (sklearn.datasets.load_digits).
Licence: Creative Commons Attribution 4.0 International (CC BY 4.0).
Changes: none to the values; stored as uint8 by scripts/make_digits.py.
"""


def main() -> None:
    """Write the arrays and the note beside them."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    if not np.array_equal(images, digits.images) or images.shape != (1797, 8, 8):
        raise SystemExit("scikit-learn's digits are not the 1,797 images of whole levels 0 to 16 that this expects")
    np.savez_compressed(DATA / "digits.npz", images=images, labels=digits.target.astype(np.uint8))
    (DATA / "digits.txt").write_text(NOTE, encoding="utf-8")
    print(f"{DATA / 'digits.npz'}: {(DATA / 'digits.npz').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

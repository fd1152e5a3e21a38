"""BibTeX of the papers that the elements come from."""

from __future__ import annotations

from collections.abc import Iterable


def _entry(kind: str, key: str, title: str, author: str, year: int, **rest: str) -> str:
    values = {"title": title, "author": author, **rest, "year": str(year)}
    lines = ",\n".join(f"  {name:<9} = {{{value}}}" for name, value in values.items())
    return f"@{kind}{{{key},\n{lines}\n}}"


BIBTEX = {
    "edm": _entry(
        "inproceedings", "karras2022edm",
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        "Tero Karras and Miika Aittala and Timo Aila and Samuli Laine", 2022,
        booktitle="Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "sde": _entry(
        "inproceedings", "song2021sde",
        "Score-Based Generative Modeling through Stochastic Differential Equations",
        "Yang Song and Jascha Sohl-Dickstein and Diederik P. Kingma and Abhishek Kumar and Stefano Ermon and Ben Poole",
        2021, booktitle="International Conference on Learning Representations (ICLR)",
    ),
    "ddpm": _entry(
        "inproceedings", "ho2020ddpm", "Denoising Diffusion Probabilistic Models",
        "Jonathan Ho and Ajay Jain and Pieter Abbeel", 2020,
        booktitle="Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "ddim": _entry(
        "inproceedings", "song2021ddim", "Denoising Diffusion Implicit Models",
        "Jiaming Song and Chenlin Meng and Stefano Ermon", 2021,
        booktitle="International Conference on Learning Representations (ICLR)",
    ),
    "iddpm": _entry(
        "inproceedings", "nichol2021iddpm", "Improved Denoising Diffusion Probabilistic Models",
        "Alexander Quinn Nichol and Prafulla Dhariwal", 2021,
        booktitle="International Conference on Machine Learning (ICML)",
    ),
    "adm": _entry(
        "inproceedings", "dhariwal2021adm", "Diffusion Models Beat GANs on Image Synthesis",
        "Prafulla Dhariwal and Alexander Quinn Nichol", 2021,
        booktitle="Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "edm2": _entry(
        "inproceedings", "karras2024edm2", "Analyzing and Improving the Training Dynamics of Diffusion Models",
        "Tero Karras and Miika Aittala and Jaakko Lehtinen and Janne Hellsten and Timo Aila and Samuli Laine", 2024,
        booktitle="IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
    ),
    "ada": _entry(
        "inproceedings", "karras2020ada", "Training Generative Adversarial Networks with Limited Data",
        "Tero Karras and Miika Aittala and Janne Hellsten and Samuli Laine and Jaakko Lehtinen and Timo Aila", 2020,
        booktitle="Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "dit": _entry(
        "inproceedings", "peebles2023dit", "Scalable Diffusion Models with Transformers",
        "William Peebles and Saining Xie", 2023,
        booktitle="IEEE/CVF International Conference on Computer Vision (ICCV)",
    ),
    "flow": _entry(
        "inproceedings", "lipman2023flow", "Flow Matching for Generative Modeling",
        "Yaron Lipman and Ricky T. Q. Chen and Heli Ben-Hamu and Maximilian Nickel and Matt Le", 2023,
        booktitle="International Conference on Learning Representations (ICLR)",
    ),
    "dpmsolver": _entry(
        "inproceedings", "lu2022dpmsolver",
        "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps",
        "Cheng Lu and Yuhao Zhou and Fan Bao and Jianfei Chen and Chongxuan Li and Jun Zhu", 2022,
        booktitle="Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "dpmpp": _entry(
        "article", "lu2022dpmpp",
        "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
        "Cheng Lu and Yuhao Zhou and Fan Bao and Jianfei Chen and Chongxuan Li and Jun Zhu", 2022,
        journal="arXiv preprint arXiv:2211.01095",
    ),
    "v": _entry(
        "inproceedings", "salimans2022progressive", "Progressive Distillation for Fast Sampling of Diffusion Models",
        "Tim Salimans and Jonathan Ho", 2022,
        booktitle="International Conference on Learning Representations (ICLR)",
    ),
    "minsnr": _entry(
        "inproceedings", "hang2023minsnr", "Efficient Diffusion Training via Min-SNR Weighting Strategy",
        "Tiankai Hang and Shuyang Gu and Chen Li and Jianmin Bao and Dong Chen and Han Hu and Xin Geng and Baining Guo",
        2023, booktitle="IEEE/CVF International Conference on Computer Vision (ICCV)",
    ),
    "sd3": _entry(
        "inproceedings", "esser2024sd3", "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
        "Patrick Esser and Sumith Kulal and Andreas Blattmann and Rahim Entezari and Jonas M{\\\"u}ller and others",
        2024, booktitle="International Conference on Machine Learning (ICML)",
    ),
    "ralston": _entry(
        "article", "ralston1962", "Runge-Kutta Methods with Minimum Error Bounds", "Anthony Ralston", 1962,
        journal="Mathematics of Computation", volume="16",
    ),
    "kutta": _entry(
        "article", "kutta1901",
        "Beitrag zur n{\\\"a}herungsweisen Integration totaler Differentialgleichungen", "Wilhelm Kutta", 1901,
        journal="Zeitschrift f{\\\"u}r Mathematik und Physik", volume="46",
    ),
    "adams": _entry(
        "book", "bashforth1883", "An Attempt to Test the Theories of Capillary Action",
        "Francis Bashforth and John Couch Adams", 1883, publisher="Cambridge University Press",
    ),
    "hairer": _entry(
        "book", "hairer1993", "Solving Ordinary Differential Equations I: Nonstiff Problems",
        "Ernst Hairer and Syvert P. N{\\o}rsett and Gerhard Wanner", 1993, publisher="Springer", edition="2nd",
    ),
    "pndm": _entry(
        "inproceedings", "liu2022pndm", "Pseudo Numerical Methods for Diffusion Models on Manifolds",
        "Luping Liu and Yi Ren and Zhijie Lin and Zhou Zhao", 2022,
        booktitle="International Conference on Learning Representations (ICLR)",
    ),
    "deis": _entry(
        "inproceedings", "zhang2023deis", "Fast Sampling of Diffusion Models with Exponential Integrator",
        "Qinsheng Zhang and Yongxin Chen", 2023,
        booktitle="International Conference on Learning Representations (ICLR)",
    ),
    "unipc": _entry(
        "inproceedings", "zhao2023unipc",
        "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
        "Wenliang Zhao and Lujia Bai and Yongming Rao and Jie Zhou and Jiwen Lu", 2023,
        booktitle="Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "expint": _entry(
        "article", "hochbruck2010", "Exponential Integrators", "Marlis Hochbruck and Alexander Ostermann", 2010,
        journal="Acta Numerica", volume="19",
    ),
    "maruyama": _entry(
        "article", "maruyama1955", "Continuous Markov Processes and Stochastic Equations", "Gisiro Maruyama", 1955,
        journal="Rendiconti del Circolo Matematico di Palermo", volume="4",
    ),
    "dormand": _entry(
        "article", "dormand1980", "A Family of Embedded Runge-Kutta Formulae", "J. R. Dormand and P. J. Prince", 1980,
        journal="Journal of Computational and Applied Mathematics", volume="6",
    ),
    "cfg": _entry(
        "inproceedings", "ho2021cfg", "Classifier-Free Diffusion Guidance", "Jonathan Ho and Tim Salimans", 2021,
        booktitle="NeurIPS Workshop on Deep Generative Models and Downstream Applications",
        note="arXiv:2207.12598",
    ),
    "autoguidance": _entry(
        "inproceedings", "karras2024autoguidance", "Guiding a Diffusion Model with a Bad Version of Itself",
        "Tero Karras and Miika Aittala and Tuomas Kynk{\\\"a}{\\\"a}nniemi and Jaakko Lehtinen and Timo Aila and "
        "Samuli Laine",
        2024, booktitle="Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "interval": _entry(
        "inproceedings", "kynkaanniemi2024interval",
        "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models",
        "Tuomas Kynk{\\\"a}{\\\"a}nniemi and Miika Aittala and Tero Karras and Samuli Laine and Timo Aila and "
        "Jaakko Lehtinen",
        2024, booktitle="Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "ddnm": _entry(
        "inproceedings", "wang2023ddnm",
        "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
        "Yinhuai Wang and Jiwen Yu and Jian Zhang", 2023,
        booktitle="International Conference on Learning Representations (ICLR)",
    ),
    "dps": _entry(
        "inproceedings", "chung2023dps", "Diffusion Posterior Sampling for General Noisy Inverse Problems",
        "Hyungjin Chung and Jeongsol Kim and Michael T. McCann and Marc L. Klasky and Jong Chul Ye", 2023,
        booktitle="International Conference on Learning Representations (ICLR)",
    ),
    "pigdm": _entry(
        "inproceedings", "song2023pigdm", "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
        "Jiaming Song and Arash Vahdat and Morteza Mardani and Jan Kautz", 2023,
        booktitle="International Conference on Learning Representations (ICLR)",
    ),
    "mmps": _entry(
        "inproceedings", "rozet2024mmps",
        "Learning Diffusion Priors from Observations by Expectation Maximization",
        "Fran{\\c{c}}ois Rozet and G{\\'e}r{\\^o}me Andry and Fran{\\c{c}}ois Lanusse and Gilles Louppe", 2024,
        booktitle="Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "tmpd": _entry(
        "article", "boys2023tmpd", "Tweedie Moment Projected Diffusions for Inverse Problems",
        "Benjamin Boys and Mark Girolami and Jakiw Pidstrigach and Sebastian Reich and Alan Mosca and "
        "O. Deniz Akyildiz",
        2023, journal="arXiv preprint arXiv:2310.06721",
    ),
    "repaint": _entry(
        "inproceedings", "lugmayr2022repaint",
        "RePaint: Inpainting Using Denoising Diffusion Probabilistic Models",
        "Andreas Lugmayr and Martin Danelljan and Andres Romero and Fisher Yu and Radu Timofte and Luc Van Gool", 2022,
        booktitle="IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
    ),
}  # fmt: skip


def bibtex(keys: Iterable[str]) -> str:
    """The entries of the given keys, each once, in the order of this file."""
    wanted = set(keys)
    return "\n\n".join(entry for key, entry in BIBTEX.items() if key in wanted)

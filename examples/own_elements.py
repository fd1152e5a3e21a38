"""A schedule, a solver and a preconditioning of one's own, in at most 8 lines each, without touching the package.

    python examples/own_elements.py

The same file is a plugin of the command line:

    elucidiff sample exact:digits --plugin examples/own_elements.py --out samples \
        --set schedule=square solver=half_euler
"""

import elucidiff as ed


class Square(ed.formulation.Schedule, kind="square"):
    """σ(t) = k t²; the derivative and the inverse come by themselves."""

    formula = "σ(t) = k t²"
    k: float = 4.0

    def sigma(self, t):
        return self.k * t**2


class HalfEuler(ed.solvers.Solver, kind="half_euler"):
    """Two Euler steps of half the length."""

    def step(self, run, x, t, t_next):
        middle = (t + t_next) / 2
        x = x + (middle - t) * run.velocity(x, t)
        return x + (t_next - middle) * run.velocity(x, middle)


class Plain(ed.preconditioning.Preconditioning, kind="plain"):
    """The network predicts the clean sample from an input of unit variance."""

    sigma_data: float = 0.5

    def coefficients(self, sigma):
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()
        return 0 * sigma, 1 + 0 * sigma, c_in, sigma.log() / 4


def main() -> None:
    """Use all three: through JSON, and to sample exact digits."""
    sampler = ed.Sampler(schedule=Square(), solver=HalfEuler(), steps=18)
    again = ed.Sampler.from_dict(sampler.to_dict())  # JSON knows the new kinds
    print(again.to_dict()["schedule"], again.to_dict()["solver"], "survived JSON:", again == sampler)
    result = ed.sample(ed.load("exact:digits"), sampler, seeds=range(4), labels=7)
    distance = (result.x[:, None] - ed.data.load("digits").tensor().double()).flatten(2).norm(dim=2).min(1).values
    print(f"{result.nfe} evaluations; distance to the nearest digit: {distance.max():.1e}")

    plain = ed.Preconditioned(ed.networks.for_shape((1, 8, 8)), Plain(), shape=(1, 8, 8))
    print("untrained, but it runs:", tuple(ed.sample(plain, sampler, seeds=[0]).x.shape))


if __name__ == "__main__":
    main()

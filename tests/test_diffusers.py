"""Models of diffusers as denoisers, our samplers in its pipelines, and the folders of both."""

import json
import math
import shutil

import pytest
import torch

import elucidiff as ed
from elucidiff import analysis
from elucidiff import formulation as fm
from elucidiff import preconditioning as pc
from elucidiff import solvers as so
from elucidiff.cli.main import main
from elucidiff.errors import FormatError, MissingExtraError
from elucidiff.training.ema import EMA

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:huggingface_hub.*"),
]
diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.disable_progress_bar()

F64 = torch.float64
BETAS = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
}
PREDICTIONS = {"epsilon": pc.Epsilon, "v_prediction": pc.V, "sample": pc.X0}


def unet(seed=0, **options):
    """A random network for 8 x 8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = diffusers.UNet2DModel(
            **{
                "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 32), "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            } | options
        )  # fmt: skip
    return made.eval()


def autoencoder(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return diffusers.AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32,), norm_num_groups=32,
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), **options,
        ).eval()  # fmt: skip


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(*args, **options):
    return ed.adapters.diffusers.load(*args, **options)


# The table of levels


def table_of(name, K=1000):
    """alpha_bar by the definitions, in float64, one number after the other."""
    product, out = 1.0, []
    for k in range(K):
        if name == "linear":
            beta = 1e-4 + (0.02 - 1e-4) * k / (K - 1)
        elif name == "scaled_linear":
            beta = (math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * k / (K - 1)) ** 2
        else:
            f = [math.cos((t / K + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (k, k + 1)]
            beta = min(1 - f[1] / f[0], 0.999)
        product *= 1 - beta
        out.append(product)
    return torch.tensor(out, dtype=F64)


@pytest.mark.parametrize("name", BETAS)
def test_the_table_is_that_of_the_definition_and_of_the_library(name):
    scheduler = diffusers.DDPMScheduler(**BETAS[name])
    table = ed.adapters.diffusers.alpha_bar(scheduler.config)
    assert torch.allclose(table, table_of(name), rtol=1e-9, atol=0)
    assert torch.allclose(table, scheduler.alphas_cumprod.double(), rtol=1e-3, atol=1e-7)


def test_other_tables_trained_betas_sigmoid_and_zero_terminal_snr():
    betas = [0.1, 0.2, 0.4]
    table = ed.adapters.diffusers.alpha_bar({"trained_betas": betas})
    assert table.tolist() == pytest.approx([0.9, 0.72, 0.432])
    for options in ({"beta_schedule": "sigmoid"}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}):
        scheduler = diffusers.DDPMScheduler(**options)
        ours = ed.adapters.diffusers.alpha_bar(scheduler.config)
        assert torch.allclose(ours, scheduler.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)
    assert 0 < ours[-1] == ours[-2] / 2  # where the library has 0, and the level infinity
    latent = diffusers.DDIMScheduler(
        **BETAS["scaled_linear"], rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    assert load(unet(), scheduler=latent).sigma_max == pytest.approx(4096, rel=1e-6)


def test_an_object_whose_table_is_not_its_configs_is_refused():
    scheduler = diffusers.DDPMScheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**1.1
    with pytest.raises(ValueError, match=r"alphas_cumprod are not those of its config \(linear\)"):
        load(unet(), scheduler=scheduler)


# D


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_D_is_the_closed_conversion_of_the_output(name, prediction):
    network = unet().double()
    scheduler = diffusers.DDPMScheduler(**BETAS[name], prediction_type=prediction)
    denoiser = load(network, scheduler=scheduler)
    assert isinstance(denoiser.preconditioning, PREDICTIONS[prediction]) and denoiser.shape == (3, 8, 8)
    table = table_of(name)
    for k in (0, 3, 250, 700, 990):
        a = table[k]
        sigma, root = ((1 - a) / a).sqrt(), a.sqrt()
        x = torch.randn(2, 3, 8, 8, dtype=F64) * (1 + sigma**2).sqrt()
        x_t = root * x
        with torch.no_grad():
            F, D = network(x_t, torch.tensor(k)).sample, denoiser(x, sigma)
        # the library's own words for the clean sample
        expected = {
            "epsilon": (x_t - (1 - a).sqrt() * F) / root,
            "v_prediction": root * x_t - (1 - a).sqrt() * F,
            "sample": F,
        }[prediction]
        assert torch.allclose(D, expected, rtol=1e-5, atol=1e-5)
        theirs = scheduler.step(F, k, x_t).pred_original_sample if prediction == "sample" else None
        assert theirs is None or torch.allclose(D.clamp(-1, 1), theirs, atol=1e-5)


def test_levels_between_are_rounded_or_interpolated():
    seen = []
    network = unet()
    network.register_forward_hook(lambda m, args, kwargs, out: seen.append(kwargs["timestep"]), with_kwargs=True)
    scheduler = diffusers.DDPMScheduler()
    table = table_of("linear")
    levels = ((1 - table) / table).sqrt()
    between = (levels[400] * levels[401]).sqrt() * 0.9999
    rounded, free = (load(network, scheduler=scheduler, levels=how) for how in ("rounded", "interpolated"))
    x = torch.randn(2, 3, 8, 8)
    rounded(x, between), free(x, between)
    assert seen[0].tolist() == [400, 400] and seen[1].tolist() == pytest.approx([400.48] * 2, abs=0.02)
    assert rounded.round_sigma(between) == pytest.approx(levels[400].item(), rel=1e-9)
    assert free.round_sigma(between) == between
    sigmas = ed.sample(rounded, ed.EDM.sampler.replace(steps=5), seeds=[0]).sigmas
    assert (sigmas[:-1, None] - levels).abs().amin(1).max() < 1e-9
    assert sigmas[0] == pytest.approx(80, rel=0.01)


def test_classes_and_the_null_class():
    network = unet(num_class_embeds=4)
    scheduler = diffusers.DDPMScheduler()
    denoiser = load(network, scheduler=scheduler, null_class=3)
    assert denoiser.label_dim == 3
    x, labels = torch.randn(3, 3, 8, 8), torch.tensor([2, 0, 1])
    level, s = denoiser.preconditioning.schedule.levels()[100], table_of("linear")[100].sqrt()
    with torch.no_grad():
        F = network((s * x).float(), torch.tensor(100), class_labels=labels).sample
        none = network((s * x).float(), torch.tensor(100), class_labels=torch.tensor([3, 3, 3])).sample
        assert torch.allclose(denoiser(x, level, labels=labels), x - level.float() * F, atol=1e-5)
        assert torch.allclose(denoiser(x, level), x - level.float() * none, atol=1e-5)
        guided = ed.guidance.ClassifierFree(denoiser, 2.0)
        expected = x - level.float() * (none + 2 * (F - none))
        assert torch.allclose(guided(x, level, labels=labels), expected, atol=1e-4)
    with pytest.raises(ValueError, match="whole classes"):
        denoiser(x, level, labels=torch.tensor([[0.5, 0.5, 0]] * 3))
    plain = load(network, scheduler=scheduler)
    assert plain.label_dim == 4
    with pytest.raises(ValueError, match="without a null class"):
        plain(x, level)
    with pytest.raises(ValueError, match="null_class: got 7; UNet2DModel has 4 classes"):
        load(network, scheduler=scheduler, null_class=7)


def test_a_dit_has_its_null_class_beyond_the_others():
    torch.manual_seed(4)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8, num_embeds_ada_norm=5
    ).eval()  # fmt: skip
    denoiser = load(network, scheduler=diffusers.DDIMScheduler(), null_class=5)
    assert (denoiser.label_dim, denoiser.shape) == (5, (4, 8, 8))
    x, labels, s = torch.randn(2, 4, 8, 8), torch.tensor([4, 1]), table_of("linear")[30].sqrt().float()
    level = denoiser.preconditioning.schedule.levels()[30]
    with torch.no_grad():
        for given, told in ((labels, labels), (None, torch.tensor([5, 5]))):
            F = network(s * x, torch.tensor([30, 30]), class_labels=told).sample[:, :4]
            assert torch.allclose(denoiser(x, level, labels=given), x - level.float() * F, atol=1e-5)


def test_a_network_of_the_library_can_be_trained_from_nothing(tmp_path):
    """As any network kind: by ed.train, with the EDM preconditioning, sizes and classes from the data."""
    config = {
        "block_out_channels": [32],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "layers_per_block": 1,
    }
    network = ed.networks.Diffusers(config=config, null_class=10)
    run = ed.train(ed.TrainConfig(data="digits", out=str(tmp_path / "run"), network=network, images=64, batch=32))
    denoiser = ed.load(run)
    assert denoiser.network.model.config.num_class_embeds == 11 and denoiser.shape == (1, 8, 8)
    x = ed.sample(denoiser, ed.EDM.sampler.replace(steps=2), seeds=[0], labels=[3]).x
    assert x.shape == (1, 1, 8, 8) and x.isfinite().all()


def test_a_conditional_network_gets_its_conditions_by_name_and_split_with_the_batch():
    torch.manual_seed(3)
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    denoiser = load(network, scheduler=diffusers.DDIMScheduler(**BETAS["scaled_linear"]))
    text = torch.randn(3, 5, 16)
    x = torch.randn(3, 4, 8, 8)
    level, s = denoiser.preconditioning.schedule.levels()[50], table_of("scaled_linear")[50].sqrt().float()
    with torch.no_grad():
        F = network(s * x, torch.tensor(50), encoder_hidden_states=text).sample
        assert torch.allclose(denoiser(x, level, encoder_hidden_states=text.double()), x - level.float() * F, atol=1e-5)
    sampler = ed.EDM.sampler.replace(steps=3)
    whole, parts = (
        ed.sample(denoiser, sampler, seeds=range(3), encoder_hidden_states=text, batch_size=size).x
        for size in (None, 2)
    )
    assert torch.allclose(whole, parts, atol=1e-3)
    assert not torch.allclose(
        whole, ed.sample(denoiser, sampler, seeds=range(3), encoder_hidden_states=-text).x, atol=0.1
    )


def test_a_predicted_variance_is_left_out():
    network = unet(out_channels=6)
    denoiser = load(network, scheduler=diffusers.DDPMScheduler(variance_type="learned_range"))
    x, level, s = torch.randn(2, 3, 8, 8), denoiser.preconditioning.schedule.levels()[9], table_of("linear")[9].sqrt()
    with torch.no_grad():
        F = network(s.float() * x, torch.tensor(9)).sample
        assert torch.allclose(denoiser(x, level), x - level.float() * F[:, :3], atol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_flow_matching(kind):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    conditions = {}
    if kind == "unet":
        network = unet()
    else:
        torch.manual_seed(2)
        network = diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=3, out_channels=3, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8,
        ).eval()  # fmt: skip
        conditions = {"encoder_hidden_states": torch.randn(2, 3, 8), "pooled_projections": torch.randn(2, 8)}
    denoiser = load(network, scheduler=scheduler)
    x_t, t = torch.randn(2, 3, 8, 8), 0.3
    with torch.no_grad():
        u = network(x_t, timestep=torch.full((2,), 1000 * t), return_dict=False, **conditions)[0]
        D = denoiser(x_t / (1 - t), t / (1 - t), **conditions)
    assert torch.allclose(D, x_t - t * u, atol=1e-5)
    assert ed.sample(denoiser, ed.EDM, seeds=[0, 1], **conditions).x.isfinite().all()


def test_networks_of_the_edm_paper_in_that_library():
    network = unet()
    denoiser = load(network, scheduler=diffusers.EDMEulerScheduler(sigma_data=0.7))
    assert denoiser.preconditioning == pc.EDM(0.7)
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.7)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(1.3)
    with torch.no_grad():
        F = network(scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma)).sample
        theirs = scheduler.precondition_outputs(x, F, sigma)
        assert torch.allclose(denoiser(x, sigma), theirs, atol=1e-5)


# Folders


def test_round_trips_through_folders_are_bit_for_bit(tmp_path, capsys):
    network = unet(num_class_embeds=3)
    pipe = diffusers.DDPMPipeline(
        network, diffusers.DDPMScheduler(**BETAS["squaredcos_cap_v2"], prediction_type="v_prediction")
    )
    pipe.save_pretrained(tmp_path / "pipe")
    (tmp_path / "pipe" / "README.md").write_text("---\nlicense: openrail\ntags:\n- x\n---\n# Card\n")
    x, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 2, 1])
    expected = load(pipe)(x, 2.5, labels=labels)

    first = ed.load(tmp_path / "pipe")
    assert torch.equal(first(x, 2.5, labels=labels), expected)
    assert first.info["license"] == "openrail" and first.info["imported"]["class"] == "UNet2DModel"
    assert main(["convert", str(tmp_path / "pipe"), str(tmp_path / "native")]) == 0
    native = ed.load(tmp_path / "native")
    assert torch.equal(native(x, 2.5, labels=labels), expected)
    assert native.preconditioning == first.preconditioning and native.info == first.info
    assert {p.name for p in (tmp_path / "native").iterdir()} == {"manifest.json", "model.json", "model.safetensors"}
    assert main(["convert", str(tmp_path / "native"), str(tmp_path / "back"), "--to", "diffusers"]) == 0
    back = diffusers.DDPMPipeline.from_pretrained(tmp_path / "back", low_cpu_mem_usage=False)
    assert back.scheduler.config.prediction_type == "v_prediction"
    assert all(
        torch.equal(a, b) for a, b in zip(back.unet.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert torch.equal(ed.load(tmp_path / "back")(x, 2.5, labels=labels), expected)
    assert main(["inspect", str(tmp_path / "native"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.split("back\n")[1])
    assert facts["network"]["config"]["block_out_channels"] == [32, 32]
    assert facts["parameters"] == sum(p.numel() for p in network.parameters())


def test_a_model_folder_alone_needs_a_scheduler(tmp_path):
    unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(FormatError, match=r"scheduler_config.json is missing.*scheduler="):
        load(tmp_path / "unet")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    beside, inside = load(tmp_path / "unet"), load(tmp_path)
    named = load(tmp_path / "unet", scheduler=diffusers.DDPMScheduler())
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(beside(x, 1.0), inside(x, 1.0)) and torch.equal(beside(x, 1.0), named(x, 1.0))
    assert torch.equal(ed.load(tmp_path)(x, 1.0), beside(x, 1.0))
    assert not beside.training and not any(p.requires_grad for p in beside.parameters())


def test_half_precision_files_and_other_damage(tmp_path):
    pipe = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path / "p", variant="fp16")
    assert load(tmp_path / "p").shape == (3, 8, 8)
    weights = next((tmp_path / "p" / "unet").glob("*.safetensors"))
    good = weights.read_bytes()
    weights.write_bytes(good[:1000])
    with pytest.raises(FormatError, match="unet: cannot be read as a model of diffusers"):
        ed.load(tmp_path / "p")
    weights.unlink()
    with pytest.raises(FormatError, match=r"unet: has no weights \(\*.safetensors\)"):
        ed.load(tmp_path / "p")
    (tmp_path / "p" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(FormatError, match=r"diffusion_pytorch_model.bin: a pickle.*save_pretrained"):
        ed.load(tmp_path / "p")
    weights.write_bytes(good)
    config = tmp_path / "p" / "unet" / "config.json"
    config.write_text(config.read_text().replace("UNet2DModel", "DDPMPipeline"))
    with pytest.raises(FormatError, match="'DDPMPipeline' is not a model class of diffusers"):
        ed.load(tmp_path / "p")
    config.write_text("{")
    with pytest.raises(FormatError, match="config.json: not a JSON file"):
        load(tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "unet")
    with pytest.raises(FormatError, match="holds none of unet, transformer"):
        load(tmp_path / "p")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_what_has_no_conversion_is_named(tmp_path):
    network = unet()
    for scheduler, message in (
        (diffusers.ScoreSdeVeScheduler(), "names no betas.*ed.adapters.wrap"),
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
        ({"beta_schedule": "linear", "prediction_type": "noise"}, "prediction_type 'noise'"),
        ({"trained_betas": [0.1, 1.2]}, r"betas: got 2 in \[0.1, 1.2\]"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "EDM scheduler: prediction_type"),
    ):
        with pytest.raises(ValueError, match=message):
            load(network, scheduler=scheduler)
    with pytest.raises(ValueError, match="scheduler= is needed beside a UNet2DModel"):
        load(network)
    with pytest.raises(TypeError, match="scheduler: got int"):
        load(network, scheduler=3)
    with pytest.raises(TypeError, match="load: got object"):
        load(object())
    with pytest.raises(ValueError, match="unknown levels 'exact'"):
        load(network, scheduler=diffusers.DDPMScheduler(), levels="exact")
    with pytest.raises(ValueError, match="takes 9 channels and gives 3"):
        load(unet(in_channels=9), scheduler=diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match="names no sample_size; give shape="):
        load(unet(sample_size=None), scheduler=diffusers.DDPMScheduler())
    with pytest.raises(TypeError, match="no class for 'mlp'.*only models that came from diffusers"):
        own = ed.Preconditioned(ed.networks.MLP(width=8, depth=1), pc.EDM(), shape=(2,))
        ed.adapters.diffusers.save(own, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    with pytest.raises(ValueError, match="config: expected an object of JSON values"):
        ed.networks.Diffusers(config="[1]")
    with pytest.raises(ValueError, match="has its own dropout"):
        ed.networks.Diffusers(dropout=0.1)


def test_without_the_library_the_extra_is_named(monkeypatch):
    network = ed.networks.Diffusers(config={"sample_size": 8})
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"elucidiff\[diffusers\]"):
        network.build((3, 8, 8), 0)


# Sampling, analysis, training


def test_an_imported_model_is_analysed_like_any_other():
    denoiser = load(unet(), scheduler=diffusers.DDPMScheduler(prediction_type="sample"), levels="interpolated")
    sampler = ed.EDM.sampler.replace(steps=4)
    found = analysis.truncation_error(denoiser, sampler, seeds=range(2))
    assert torch.equal(found.sigmas, sampler.sigmas(denoiser)) and found.nfe.tolist() == [2, 2, 2, 1]
    # the first step, from its definition: Heun against 400 small ones from the same noise
    first, second = found.sigmas[:2].tolist()
    fine = torch.linspace(first, second, 401, dtype=F64)[:-1].tolist()

    def step(sigmas):
        run = ed.Sampler(
            timesteps=ed.timesteps.Fixed(sigmas=tuple([*sigmas, second])), steps=len(sigmas) + 1, to_zero=False
        )
        return ed.sample(denoiser, run, seeds=range(2)).x

    error = (step([first]) - step(fine)).square().mean().sqrt()
    assert found.error[0].item() == pytest.approx(error.item(), rel=0.05)
    curves = analysis.curvature(denoiser, {"edm": sampler}, seeds=range(2), per_halving=2)
    assert curves.designs[0].turning > 0 and curves.designs[0].stretch > 0


def test_an_imported_model_learns():
    """Fine-tuning by ed.loss: the loss on one batch falls, and the average follows."""
    denoiser = load(unet(), scheduler=diffusers.DDPMScheduler(prediction_type="v_prediction"), levels="interpolated")
    denoiser.train().requires_grad_(True)
    ema = EMA(denoiser)
    objective = ed.Objective(weighting=ed.objective.EDM(0.5))
    adam = torch.optim.Adam(denoiser.parameters(), lr=2e-3)
    y = torch.randn(1, 3, 8, 8).clamp(-1, 1).expand(8, -1, -1, -1) * 0.5
    before = next(ema.module.parameters()).clone()
    losses = []
    for _ in range(12):
        value = ed.loss(denoiser, y, objective, generator=torch.Generator().manual_seed(1)).mean()
        adam.zero_grad()
        value.backward()
        adam.step()
        ema.update(0.5)
        losses.append(value.item())
    assert all(p.grad is not None for p in denoiser.parameters())
    assert losses[-1] < 0.6 * losses[0]
    after = next(ema.module.parameters())
    assert not torch.equal(before, after) and not torch.equal(after, next(denoiser.parameters()))


# Latent models


def test_latents_are_decoded_and_encoded_by_the_models_own_autoencoder(tmp_path):
    vae = autoencoder(scaling_factor=0.5, shift_factor=0.25)
    network = unet(in_channels=4, out_channels=4)
    pipe = _latent_pipeline(network, vae)
    denoiser = load(pipe)
    z = torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        expected = vae.decode(z / 0.5 + 0.25).sample
    assert torch.allclose(denoiser.decode(z), expected, atol=1e-6)
    assert torch.allclose(ed.FixedBatch(denoiser, 2).decode(z.double()), expected, atol=1e-5)
    assert denoiser.sigma_max < 160 and ed.sample(denoiser, ed.EDM, seeds=[0]).x.shape == (1, 4, 8, 8)
    latents = ed.adapters.diffusers.encode(denoiser, expected)
    with torch.no_grad():
        mode = vae.encode(expected).latent_dist.mode()
    assert torch.allclose(latents, (mode - 0.25) * 0.5, atol=1e-6)
    bare = load(pipe, autoencoder=False)
    assert bare.decode(z) is z
    with pytest.raises(TypeError, match="without an autoencoder"):
        ed.adapters.diffusers.encode(bare, expected)
    ed.save(denoiser, tmp_path / "native")
    assert torch.allclose(ed.load(tmp_path / "native").decode(z), expected, atol=1e-6)


def test_an_autoencoder_with_means_and_deviations_a_channel():
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 4.0]
    vae = autoencoder(scaling_factor=0.5, latents_mean=mean, latents_std=std)
    denoiser = load(_latent_pipeline(unet(in_channels=4, out_channels=4), vae))
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        raw = z * torch.tensor(std).reshape(1, 4, 1, 1) / 0.5 + torch.tensor(mean).reshape(1, 4, 1, 1)
        assert torch.allclose(denoiser.decode(z), vae.decode(raw).sample, atol=1e-5)
        pictures = torch.rand(1, 3, 8, 8)
        mode = vae.encode(pictures).latent_dist.mode()
    again = ed.adapters.diffusers.encode(denoiser, pictures) * torch.tensor(std).reshape(1, 4, 1, 1) / 0.5
    assert torch.allclose(again + torch.tensor(mean).reshape(1, 4, 1, 1), mode, atol=1e-5)


def test_the_command_line_writes_pictures_of_a_latent_model(tmp_path):
    pipe = _latent_pipeline(unet(in_channels=4, out_channels=4), autoencoder(scaling_factor=0.5))
    denoiser = load(pipe)
    ed.save(denoiser, tmp_path / "m")
    assert main(["sample", str(tmp_path / "m"), "--seeds", "0-1", "--steps", "2", "--out", str(tmp_path / "s")]) == 0
    provenance = json.loads((tmp_path / "s/samples.json").read_text())
    assert provenance["decoded_from"] == [2, 4, 8, 8] and provenance["shape"] == [2, 3, 8, 8]
    assert sorted(p.name for p in (tmp_path / "s").glob("*.png")) == ["000000.png", "000001.png"]
    x = ed.sample(denoiser, ed.EDM.sampler.replace(steps=2), seeds=range(2)).x
    written = ed.data.load(tmp_path / "s").tensor()
    assert (written - denoiser.decode(x).clamp(-1, 1)).abs().max() < 0.01


class _Pipe(diffusers.DiffusionPipeline):
    """A pipeline with a network, a scheduler and an autoencoder, as unconditional latent diffusion has them."""

    def __init__(self, vae, unet, scheduler):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)


def _latent_pipeline(network, vae):
    return _Pipe(vae, network, diffusers.DDIMScheduler())


# Our samplers in their pipelines

SAMPLERS = {
    "euler": ed.EDM.sampler.replace(solver=so.Euler()),
    "heun": ed.EDM.sampler,
    "dpmpp_2m": ed.EDM.sampler.replace(solver=so.Solver.of_kind("dpmpp_2m")()),
    "vp scaled": ed.EDM.sampler.replace(schedule=fm.VP(), scaling=fm.VariancePreserving()),
    "churn": ed.EDM.sampler.replace(stochasticity=so.Churn(S_churn=40, S_max=50)),
    "dpmpp_sde": ed.EDM.sampler.replace(solver=so.Solver.of_kind("dpmpp_sde")()),
    "ancestral": ed.EDM.sampler.replace(solver=so.Euler(), stochasticity=so.Stochasticity.of_kind("ancestral")()),
}


def scheduler_of(config, sampler, **options):
    return ed.adapters.diffusers.ElucidiffScheduler.from_config(config, sampler=sampler, **options)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_pipeline_draws_what_ed_sample_draws(name, prediction):
    network = unet()
    plain = diffusers.DDPMScheduler(prediction_type=prediction)
    scheduler = scheduler_of(plain.config, SAMPLERS[name])
    pipe = quiet(diffusers.DDPMPipeline(network, scheduler))
    pictures = [
        pipe(batch_size=2, generator=torch.Generator().manual_seed(5), num_inference_steps=7, output_type="pt").images
        for _ in range(2)
    ]
    assert torch.equal(*pictures)  # the second run knows nothing of the first

    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, 3, 8, 8, generator=generator)
    seeds = torch.randint(2**63 - 1, (2,), generator=generator).tolist()
    result = ed.sample(load(network, scheduler=plain), SAMPLERS[name].replace(steps=7), latents=noise, seeds=seeds)
    expected = (result.x / 2 + 0.5).clamp(0, 1)
    assert ((expected > 0) & (expected < 1)).double().mean() > 0.4  # the comparison is not one of clipped values
    assert (pictures[0] - expected).abs().max() < 1e-4
    assert len(scheduler.timesteps) == result.nfe
    calls_a_step = 2 if result.nfe > 7 else 1
    assert scheduler.order == calls_a_step


def test_epsilon_networks_in_a_pipeline():
    """A random epsilon network leaves its noise in the samples, so these are compared before the pipeline's clipping."""
    network = unet()
    plain = diffusers.DDPMScheduler()
    scheduler = scheduler_of(plain.config, ed.EDM)
    noise = torch.randn(2, 3, 8, 8)
    x = noise * scheduler.init_noise_sigma
    scheduler.set_timesteps(6)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    expected = ed.sample(load(network, scheduler=plain), ed.EDM.sampler.replace(steps=6), latents=noise).x
    assert (x - expected).abs().max() < 1e-4 * expected.abs().max()


def test_churn_before_the_first_call_takes_the_pipelines_noise_for_that_of_the_call():
    """x = sigma_hat z at the first call: then the same run from the latent that churn raises to it."""
    network = unet()
    plain = diffusers.DDPMScheduler(prediction_type="v_prediction")
    sampler = ed.EDM.sampler.replace(stochasticity=so.Churn(S_churn=40), steps=6)
    pipe = quiet(diffusers.DDPMPipeline(network, scheduler_of(plain.config, sampler)))
    generator = torch.Generator().manual_seed(5)
    picture = pipe(batch_size=2, generator=generator, num_inference_steps=6, output_type="pt").images
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(2, 3, 8, 8, generator=generator)
    seeds = torch.randint(2**63 - 1, (2,), generator=generator).tolist()
    denoiser = load(network, scheduler=plain)
    low, high = (
        denoiser.preconditioning.round_sigma(sampler.sigmas(denoiser)[:1]).item(),
        pipe.scheduler.sigmas[0].item(),
    )
    assert high > 1.4 * low
    drawn = ed.seeds.Seeds(seeds)
    drawn.normal((3, 8, 8), torch.float32)
    eps = drawn.normal((3, 8, 8), F64)
    high = float(denoiser.round_sigma(torch.tensor(high, dtype=F64)))
    latents = (high * z.double() - math.sqrt(high**2 - low**2) * sampler.stochasticity.S_noise * eps) / low
    expected = ed.sample(denoiser, sampler, latents=latents, seeds=seeds).x
    assert (picture - (expected / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-4


def test_image_to_image_begins_in_the_middle():
    network = unet()
    plain = diffusers.DDPMScheduler(prediction_type="v_prediction")
    scheduler = scheduler_of(plain.config, ed.EDM)
    scheduler.set_timesteps(8)
    begin = 3 * scheduler.order
    scheduler.set_begin_index(begin)
    x_0, noise = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 3, 8, 8)
    rest = scheduler.timesteps[begin:]
    x = scheduler.add_noise(x_0, noise, rest[:1].repeat(2))
    with torch.no_grad():
        for t in rest:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    denoiser = load(network, scheduler=plain)
    levels = ed.EDM.sampler.replace(steps=8).sigmas(denoiser)[3:-1]
    shortened = ed.EDM.sampler.replace(timesteps=ed.timesteps.Fixed(sigmas=tuple(levels.tolist())))
    expected = ed.sample(denoiser, shortened, latents=x_0.double() / levels[0] + noise).x
    assert (x - expected).abs().max() < 1e-4
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(begin - 1)
    with pytest.raises(ValueError, match="in the middle of a step"):
        scheduler.step(x, scheduler.timesteps[begin - 1], x)


def test_add_noise_is_the_forward_process():
    plain = diffusers.DDPMScheduler()
    x_0, noise, t = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0, 500, 999])
    assert torch.allclose(
        scheduler_of(plain.config, ed.EDM).add_noise(x_0, noise, t), plain.add_noise(x_0, noise, t), atol=1e-5
    )
    flow = scheduler_of(diffusers.FlowMatchEulerDiscreteScheduler().config, ed.EDM)
    assert flow.preconditioning == pc.Flow(time_scale=1000)
    mixed = flow.scale_noise(x_0, torch.tensor([250.0, 500.0, 750.0]), noise)
    u = torch.tensor([[0.25], [0.5], [0.75]])
    assert torch.allclose(mixed, (1 - u) * x_0 + u * noise, atol=1e-6)


def test_the_scheduler_is_saved_and_loaded_with_its_pipeline(tmp_path):
    sampler = ed.EDM.sampler.replace(steps=5, stochasticity=so.Churn(S_churn=3, S_max=50), solver=so.Euler())
    theirs = diffusers.DDPMScheduler(**BETAS["scaled_linear"], prediction_type="v_prediction")
    scheduler = scheduler_of(theirs.config, sampler, levels="interpolated")
    pipe = quiet(diffusers.DDPMPipeline(unet(), scheduler))
    pipe.save_pretrained(tmp_path / "p")
    again = quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path / "p", low_cpu_mem_usage=False))
    assert type(again.scheduler) is ed.adapters.diffusers.ElucidiffScheduler
    assert ed.Sampler.from_dict(again.scheduler.config.sampler) == sampler
    assert again.scheduler.preconditioning == scheduler.preconditioning
    a, b = (
        p(generator=torch.Generator().manual_seed(0), num_inference_steps=5, output_type="pt").images
        for p in (pipe, again)
    )
    assert (a - b).abs().max() < 1e-4
    back = diffusers.DDIMScheduler.from_config(again.scheduler.config)  # their schedulers read ours as theirs
    assert torch.equal(back.alphas_cumprod, diffusers.DDIMScheduler(**BETAS["scaled_linear"]).alphas_cumprod)
    assert ed.load(tmp_path / "p").preconditioning == load(pipe).preconditioning  # and we read our own
    own = ed.adapters.diffusers.ElucidiffScheduler(preconditioning=pc.EDM(0.6), sampler=ed.VE)
    own.save_pretrained(tmp_path / "own")
    read = ed.adapters.diffusers.ElucidiffScheduler.from_pretrained(tmp_path / "own")
    assert read.preconditioning == pc.EDM(0.6) and torch.equal(read.timesteps, own.timesteps)
    edm = scheduler_of(diffusers.EDMEulerScheduler(sigma_data=0.7).config, ed.EDM)
    assert edm.preconditioning == pc.EDM(0.7) and len(edm) == 1000


def test_an_interrupted_run_leaves_nothing_and_misuse_is_named():
    scheduler = scheduler_of(diffusers.DDPMScheduler().config, ed.EDM)
    x, F = torch.randn(2, 3), torch.randn(2, 3)

    def run(stop):
        scheduler.set_timesteps(3)
        sample = x
        for t in scheduler.timesteps[:stop]:
            sample = scheduler.step(F, t, sample, return_dict=False)[0]
        return sample

    whole = run(None)
    run(2)  # interrupted in the middle of a step
    assert torch.equal(run(None), whole)
    with pytest.raises(RuntimeError, match="the run is done; call set_timesteps"):
        scheduler.step(F, 0, whole)
    sample = run(2)
    t = scheduler.timesteps
    with pytest.raises(ValueError, match=f"got timestep {t[0]}; entry 2 is {t[2]}"):
        scheduler.step(F, t[0], sample)
    with pytest.raises(ValueError, match="not the one that the last step returned"):
        scheduler.step(F, t[2], sample + 0.1)
    with pytest.raises(ValueError, match=r"got an output \(2, 2\) for samples \(2, 3\)"):
        scheduler.step(F[:, :2], t[2], sample)
    assert torch.equal(scheduler.step(F, t[2], sample).prev_sample, run(3))  # after all of these it goes on
    with pytest.raises(ValueError, match="rk45.*chooses its steps as it goes"):
        scheduler_of({}, ed.Sampler(solver=so.Solver.of_kind("rk45")()))
    with pytest.raises(ValueError, match="to_zero=False"):
        scheduler_of({}, ed.Sampler(to_zero=False))
    with pytest.raises(TypeError, match="sampler: got 3"):
        scheduler_of({}, 3)
    churned = scheduler_of({}, ed.Sampler(stochasticity=so.Churn(S_churn=1)))
    churned.set_timesteps(8)
    churned.set_begin_index(4)
    with pytest.raises(ValueError, match="churn depends on its number of steps"):
        churned.step(F, churned.timesteps[4], x)
    with pytest.raises(ValueError, match="generator: got 3 for 2 samples"):
        churned.set_timesteps(8)
        churned.step(F, churned.timesteps[0], x, generator=[torch.Generator() for _ in range(3)])


def test_noise_without_a_generator_comes_from_the_samples_and_never_from_the_global_state():
    scheduler = scheduler_of({}, ed.Sampler(stochasticity=so.Churn(S_churn=10, S_max=50), steps=4))
    x = torch.randn(3, 2)
    state = torch.random.get_rng_state()

    def run(rows):
        scheduler.set_timesteps(4)
        sample = rows
        for t in scheduler.timesteps:
            sample = scheduler.step(0.1 * sample, t, sample).prev_sample
        return sample

    whole = run(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(run(x[1:2]), whole[1:2])  # a sample depends on itself alone
    assert not torch.allclose(run(x + 1e-3), whole, atol=1e-2)

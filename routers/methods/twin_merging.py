"""Router `twin_merging`: shared knowledge plus expert knowledge, weighted by a classifier (Lu et al., 2024).

    shared = λ Σ_e τ_e        twin_t = τ_t − shared        θ(q) = base + shared + Σ_t w_t(q) twin_t

where τ_e is the update of expert e, λ = 0.3, and w = softmax of an MLP on the base's mean last hidden state of the
prompt. All of it is linear in the τ_e, so it is a mix, in which expert t has the coefficient

    λ (1 − Σ_{t in top k} w_t) + w_t [t in top k]

By default k is the number of experts. Then Σ w = 1, nothing of ``shared`` remains, and the mix has the weights w. With
a smaller k the weights are not renormalised, and ``shared`` fills the rest. A mix contains up to 64 experts, those with
the highest scores that the caller may use; ``shared`` is the sum of these.

The MLP is that of the authors' code: two hidden layers twice as wide as the state, trained with Adam and cross-entropy
to name the expert of an example. Standardised inputs and a penalty on the weights replace batch normalisation and
dropout, and ReLU replaces leaky ReLU (scikit-learn's MLPClassifier). The artefact stores plain layers, W (inputs,
outputs) and b (outputs,), with the standardisation folded in.

Evidence is the cosine to the mean of the first expert's examples, on the library's scale
(`routers.families.standardised_states`). An out-of-scope prompt is far from every mean, but the MLP names an expert for
it with the same confidence.

Further differences: twins are exact, while the code truncates them to rank 8 (LoRA) or masks small entries, which loses
quality. The hidden states are those of the base, not of base + shared. Small libraries train for at least `min_steps`,
because 50 epochs of 20 examples an expert are far fewer steps than of 1,000. The router may abstain.

Cost: a request takes one pass of the prompt through the base and 6 d² multiplications; a fit takes six trainings. For
states of d > 1,000 set `hidden_size`, or the artefact takes 24 d² bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from routers.base import MAX_EXPERTS, GateChoice, MethodCard, ScoredExpert, WeightedExpert
from routers.families.options import CalibrationOptions
from routers.families.scoring import (
    Judgement,
    Learned,
    Prompts,
    Scores,
    ScoringRouter,
)
from routers.families.standardised_states import StateScale
from routers.families.static_mix import NEGLIGIBLE
from routers.library.examples import Examples
from routers.maths.unit_rows import to_unit


class TwinMergingConfig(CalibrationOptions):
    """Options of `twin_merging`."""

    shared_scale: float = Field(0.3, ge=0, le=1, description="λ, the scale of the sum of all experts.")
    top_k: int | None = Field(
        None, ge=1, le=MAX_EXPERTS, description="Number of twins that are added, the most probable ones; unset: all."
    )
    hidden_size: int | None = Field(None, ge=1, description="Width of the MLP's hidden layers; unset: twice the state.")
    num_hidden: int = Field(2, ge=1, le=4, description="Hidden layers of the MLP.")
    epochs: int = Field(50, ge=1, description="Training passes over the examples.")
    min_steps: int = Field(200, ge=1, description="Minimum number of training steps; small libraries get more epochs.")
    batch_size: int = Field(256, ge=1, description="Examples in a step.")
    learning_rate: float = Field(5e-4, gt=0, description="Learning rate of Adam.")
    weight_penalty: float = Field(1.0, ge=0, description="Penalty on the squared weights, divided by the batch size.")


class TwinMergingRouter(ScoringRouter):
    """Mixes the experts with an MLP's probabilities as weights."""

    card: ClassVar[MethodCard] = MethodCard(
        name="twin_merging",
        title="Twin-Merging: shared and exclusive knowledge",
        paper="Lu et al., Twin-Merging, 2024 (arXiv:2406.15479), its code",
        expert_training="independent",
        expert_data="private; example prompts are shared",
        routing_dataset="example prompts of each expert",
        input_granularity="example",
        depth="model",
        selection="dense",
        aggregation="parameters",
        generalization="in-domain prompts; mixtures of them",
        user_dataset="none",
        needs=("examples",),
        embedder="base",
        refit="costly",
        cost="one pass of the prompt through the base, and a small MLP",
        differences=(
            "twins are not truncated, so the result is an exact mix",
            "hidden states of the base instead of base and shared",
            "standardised inputs instead of batch normalisation, a penalty instead of dropout, ReLU",
            "it may abstain",
        ),
    )
    config_class: ClassVar[type[CalibrationOptions]] = TwinMergingConfig

    @classmethod
    def learn(cls, config: TwinMergingConfig, examples: Examples) -> Learned:
        """Train the layers and average the standardised examples; outputs belong to the C experts with examples."""
        classes = np.unique(examples.owner).astype(np.int32)
        dim = examples.embeddings.shape[1]
        scale = StateScale.of(examples)
        layers = [(np.zeros((dim, len(classes)), np.float32), np.zeros(len(classes), np.float32))]
        if len(classes) > 1:
            layers = _trained(config, examples, scale)
        arrays = {
            f"{kind}_{n}": array for n, layer in enumerate(layers) for kind, array in zip("wb", layer, strict=True)
        }
        means = to_unit(replace(examples, embeddings=scale(examples.embeddings)).mean_of_experts())
        return Learned({**arrays, "classes": classes, "means": means, **scale.arrays()}, {"num_layers": len(layers)})

    def prepare(self, learned: Learned) -> None:
        """Take layers, means and scale."""
        numbers = range(int(learned.data["num_layers"]))
        self._layers = [tuple(np.asarray(learned.arrays[f"{kind}_{n}"], np.float32) for kind in "wb") for n in numbers]
        self._classes = np.asarray(learned.arrays["classes"])
        widths = [weights.shape[0] for weights, _ in self._layers[1:]] + [len(self._classes)]
        for (weights, bias), width in zip(self._layers, widths, strict=True):
            if weights.ndim != 2 or weights.shape[1] != width or bias.shape != (width,):
                raise ValueError(f"a layer of shape {weights.shape} before one of {width} inputs")
        if len(self._classes) and not 0 <= self._classes.min() <= self._classes.max() < len(self.experts):
            raise ValueError("outputs of an unknown expert")
        self._scale = StateScale.load(learned.arrays)
        self._means = np.asarray(learned.arrays["means"], np.float32)
        if self._means.shape != (len(self.experts), len(self._scale.mean)):
            raise ValueError(f"means of shape {self._means.shape} for {len(self.experts)} experts")

    def judge(self, prompts: Prompts) -> Judgement:
        """Return probabilities as scores and cosines to the means as evidence."""
        cosines = self._scale(prompts.embeddings) @ self._means.T
        return Judgement(self.scores(prompts), np.asarray(cosines, np.float64))

    def scores(self, prompts: Prompts) -> Scores:
        """Return probabilities; NaN for experts without an example."""
        found = np.full((len(prompts.embeddings), len(self.experts)), np.nan)
        if len(self._classes):
            state = prompts.embeddings
            for weights, bias in self._layers[:-1]:
                state = np.maximum(state @ weights + bias, 0)
            weights, bias = self._layers[-1]
            found[:, self._classes] = softmax(np.asarray(state @ weights + bias, np.float64), axis=1)
        return found

    def choose(self, ranked: Sequence[ScoredExpert]) -> tuple[tuple[WeightedExpert, ...], GateChoice | None]:
        """Choose the coefficients of the mix, without negligible ones."""
        held = ranked[:MAX_EXPERTS]
        used = np.array([scored.score for scored in held])
        used[self.config.top_k or len(held) :] = 0.0
        rest = self.config.shared_scale * max(0.0, 1.0 - float(used.sum()))
        mix = [WeightedExpert(scored.expert_id, rest + w) for scored, w in zip(held, used.tolist(), strict=True)]
        return (mix[0], *(expert for expert in mix[1:] if expert.weight >= NEGLIGIBLE)), None


Layer = tuple[np.ndarray, np.ndarray]


def _trained(config: TwinMergingConfig, examples: Examples, scale: StateScale) -> list[Layer]:
    """Train the MLP on standardised states; the returned layers take raw states and give one logit per class."""
    inputs = scale.standardised(examples.embeddings)
    batch = min(config.batch_size, len(inputs))
    epochs = max(config.epochs, -(-config.min_steps * batch // len(inputs)))
    model = MLPClassifier(
        hidden_layer_sizes=(config.hidden_size or 2 * inputs.shape[1],) * config.num_hidden,
        alpha=config.weight_penalty,
        batch_size=batch,
        learning_rate_init=config.learning_rate,
        max_iter=epochs,
        n_iter_no_change=epochs,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # training ends after its epochs, as in the authors' code
        model.fit(inputs, examples.owner)
    layers = [(np.asarray(w), np.asarray(b)) for w, b in zip(model.coefs_, model.intercepts_, strict=True)]
    weights, bias = layers[0]
    layers[0] = (weights / scale.spread[:, None], bias - (scale.mean / scale.spread) @ weights)
    if len(model.classes_) == 2:  # scikit-learn has one logit for two classes, the second's; give half to each
        weights, bias = layers[-1]
        layers[-1] = (np.concatenate([-weights, weights], axis=1) / 2, np.concatenate([-bias, bias]) / 2)
    return [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]

"""Accuracy of a linear classifier on frozen features, by scikit-learn (extra `evaluate`).

It is a multinomial logistic regression. Features are standardized by the mean and the standard
deviation of the training part, so a given l2 means the same for every model. l2 is chosen from
L2_GRID by the accuracy on a held-out share of the training part, and the classifier is then fitted
again to the whole training part.

Letters: N images, D width, C labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from featkit.errors import InputError
from featkit.evaluate.baselines import PIXELS_SIDE
from featkit.evaluate.embedding import ImageModel, OnProgress, no_progress
from featkit.evaluate.knn import count_near_copies
from featkit.evaluate.labels import LABEL, LabeledPair, embed_labeled
from featkit.evaluate.retrieval import bootstrap_interval
from featkit.sources import Source

# l2 in  mean cross-entropy in nats + l2 / 2 * sum of squared weights.  It does not depend on the
# number of images.
L2_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HELD_OUT = 0.2
MAX_ITERATIONS = 1000
# On 3,000 CIFAR-10 images, all 3,072 values took 20 times as long and were no better.
SMALL_SIDE = 8
SMALL_PIXELS = f"pixels, {SMALL_SIDE}×{SMALL_SIDE}"  # their name in reports


@dataclass(frozen=True, kw_only=True)
class LinearScore:
    """Scores of one kind of features on the test part.

    interval: the 95 % bootstrap interval of `accuracy`. held_out: the accuracy on the held-out
    share for each l2 of L2_GRID. converged: whether the last fit ended within MAX_ITERATIONS.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]
    l2: float
    held_out: list[float]
    converged: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Classified:
    """The result of one kind of features, image by image.

    right: whether (N,) each test image gets its label; 1.0 or 0.0, float64. The other fields are
    those of LinearScore.
    """

    name: str
    right: np.ndarray
    l2: float
    held_out: list[float]
    converged: bool

    @property
    def score(self) -> LinearScore:
        """The accuracy, and how the classifier was fitted."""
        return LinearScore(
            name=self.name,
            accuracy=float(self.right.mean()),
            interval=bootstrap_interval(self.right),
            l2=self.l2,
            held_out=self.held_out,
            converged=self.converged,
        )


@dataclass(frozen=True, kw_only=True)
class LinearReport:
    """The result. The model's score comes first.

    columns: the columns that the labels came from, of the training and of the test part.
    """

    num_train: int
    num_held_out: int  # of the training part
    num_test: int
    num_labels: int
    num_unseen: int  # test images whose label the training part does not have
    num_near_copies: int  # test images that the training part has as well
    columns: tuple[str, str]
    seed: int
    grid: tuple[float, ...]
    most_frequent: float  # accuracy of always predicting the training part's most frequent label
    scores: list[LinearScore]
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted classifier of standardized features.

    mean and std: (D,). weights: (D, C) and biases: (C,), float64. labels: (C,).
    """

    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray
    biases: np.ndarray
    labels: np.ndarray
    converged: bool

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predict labels (N,) of features (N, D); ties go to the first label."""
        scores = ((features - self.mean) / self.std) @ self.weights + self.biases
        return np.asarray(self.labels[scores.argmax(axis=1)])

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Return the share of features (N, D) whose label (N,) is predicted."""
        return float((self.predict(features) == labels).mean())


def evaluate_linear(
    train: Source,
    test: Source,
    model: ImageModel,
    *,
    label: str = LABEL,
    seed: int = 0,
    on_progress: OnProgress = no_progress,
    on_step: Callable[[str], None] = lambda _step: None,
) -> LinearReport:
    """Fit a linear classifier to `train` and test it on `test`, on the model's vectors and pixels.

    label and the errors are those of `labels.embed_labeled`; InputError is also raised if the
    training part has a single label. seed: chooses the held-out images. The pixels are those of the
    image stretched to 8 × 8. on_step: called with each step that follows the embedding.
    """
    failures: list[tuple[str, str]] = []
    pair = embed_labeled(train, test, model, failures, label=label, on_progress=on_progress)
    classified = classify(pair, model.manifest.name, seed=seed, on_step=on_step)
    return report_classified(pair, classified, seed=seed, failures=failures)


def classify(
    pair: LabeledPair,
    name: str,
    *,
    seed: int = 0,
    baselines: bool = True,
    on_step: Callable[[str], None] = lambda _step: None,
) -> list[Classified]:
    """Fit and test a classifier on the vectors of the model `name`, and with baselines=True on
    pixels.

    The model comes first. seed and on_step as for `evaluate_linear`. Raises InputError if the
    training part has a single label.
    """
    refuse_single_label(set(pair.train.known), pair.sources[0])
    fitted, held_out = split(pair.train_labels, seed=seed)
    features = [(name, pair.train.vectors, pair.test.vectors)]
    if baselines:
        small = [small_pixels(part.pixels) for part in (pair.train, pair.test)]
        features.append((SMALL_PIXELS, small[0], small[1]))
    classified = []
    for method, train_features, test_features in features:
        on_step(f"fitting {method} at {len(L2_GRID)} strengths of regularization ...")
        l2, by_l2 = choose_l2(train_features, pair.train_labels, fitted, held_out)
        (classifier,) = fit(train_features, pair.train_labels, [l2])
        right = classifier.predict(test_features) == pair.test_labels
        classified.append(
            Classified(
                name=method,
                right=right.astype(np.float64),
                l2=l2,
                held_out=by_l2,
                converged=classifier.converged,
            )
        )
    return classified


def refuse_single_label(labels: set[str], source: str) -> None:
    """Raise InputError if the training images of `source` have a single label."""
    if len(labels) == 1:
        raise InputError(
            f"{source} has the single label {min(labels)}; a classifier needs two or more."
        )


def report_classified(
    pair: LabeledPair,
    classified: Sequence[Classified],
    *,
    seed: int,
    failures: list[tuple[str, str]],
) -> LinearReport:
    """Return the report of classifiers on a pair; seed: as for `classify`."""
    return LinearReport(
        num_train=len(pair.train),
        num_held_out=len(split(pair.train_labels, seed=seed)[1]),
        num_test=len(pair.test),
        num_labels=len(pair.names),
        num_unseen=pair.num_unseen,
        num_near_copies=count_near_copies(pair),
        columns=pair.columns,
        seed=seed,
        grid=L2_GRID,
        most_frequent=pair.most_frequent,
        scores=[each.score for each in classified],
        failures=failures,
    )


def split(
    labels: np.ndarray, *, seed: int, share: float = HELD_OUT
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (N - H,) to fit to and (H,) to hold out, both ascending.

    `share` of each label's images, rounded down, is held out, so every label keeps at least one
    image. Nothing is held out if no label has enough images.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = np.nonzero(labels == label)[0]
        held[rng.permutation(places)[: int(share * len(places))]] = True
    return np.nonzero(~held)[0], np.nonzero(held)[0]


def choose_l2(
    features: np.ndarray,
    labels: np.ndarray,
    fitted: np.ndarray,
    held_out: np.ndarray,
    *,
    grid: Sequence[float] = L2_GRID,
) -> tuple[float, list[float]]:
    """Return the l2 with the best accuracy on the held-out images, and the accuracy of each l2.

    If accuracies tie, the largest l2 wins. If nothing is held out, the fitted images are used.
    """
    judged = held_out if len(held_out) else fitted
    classifiers = fit(features[fitted], labels[fitted], grid)
    accuracies = [
        classifier.accuracy(features[judged], labels[judged]) for classifier in classifiers
    ]
    return max(zip(accuracies, grid, strict=True))[1], accuracies


def fit(features: np.ndarray, labels: np.ndarray, l2s: Sequence[float]) -> list[LinearClassifier]:
    """Fit one classifier for each l2 by L-BFGS, starting from the result of the next larger l2.

    It minimizes, for standardized features x:

        mean(-log softmax(x @ weights + biases)[label]) + l2 / 2 * sum(weights ** 2)

    features (N, D): any float dtype, computed in float64. labels (N,): of two classes or more.
    Biases are not regularized. With two classes, the weights of the first are 0.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    wide = features.astype(np.float64)
    mean, std = wide.mean(axis=0), wide.std(axis=0)
    std = np.where(std > 1e-9, std, 1.0)  # a constant feature is useless and becomes 0
    regression = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    found = {}
    for l2 in sorted(l2s, reverse=True):
        regression.set_params(C=1 / (l2 * len(labels)))  # C weighs the sum of the losses
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            # Labels are codes, which resemble a regression if most of them are rare.
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            regression.fit((wide - mean) / std, labels)
        weights, biases = regression.coef_.T.copy(), regression.intercept_.copy()
        if len(regression.classes_) == 2:  # one column: the second class against the first
            weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
            biases = np.concatenate([np.zeros_like(biases), biases])
        converged = int(regression.n_iter_.max()) < MAX_ITERATIONS
        found[l2] = LinearClassifier(mean, std, weights, biases, regression.classes_, converged)
    return [found[l2] for l2 in l2s]


def small_pixels(pixels: np.ndarray) -> np.ndarray:
    """Average 4 × 4 pixels in rows (N, 3072) uint8 of 32 × 32 pixels; return (N, 192) float32."""
    fold = PIXELS_SIDE // SMALL_SIDE
    blocks = pixels.reshape(len(pixels), SMALL_SIDE, fold, SMALL_SIDE, fold, 3)
    return np.asarray(blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(pixels), -1))

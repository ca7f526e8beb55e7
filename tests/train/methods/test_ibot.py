"""Promises of iBOT: one step against a plain loop of the paper's algorithm 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from featkit_train.methods import MomentumTeacher, Views
from featkit_train.networks.base import Features, Masked
from tests.train.methods.training import (
    BATCH,
    MASK_NUMBERS,
    OWN_HEAD,
    assert_same_gradients,
    cross_entropy,
    drawn_method,
    generators,
    gradients,
    of,
    random_views,
    some_masks,
    take_step,
)
from tests.train.momentum import make_teacher

HEADS = {"shared": [], "own": [OWN_HEAD]}


def seen_by_student(method: MomentumTeacher, views: Views) -> list[Features]:
    """Return the backbone's features of each global crop with its masks."""
    token = method.student.mask_token
    assert token is not None
    return [
        method.student.backbone.student_forward(crop, masked=Masked(masks, token))
        for crop, masks in zip(views.global_crops, views.masks, strict=True)
    ]


def algorithm_1(
    method: MomentumTeacher, views: Views, *, step: int, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss and updated centers by the paper's pseudocode, patch by patch."""
    student, teacher = method.student, method.teacher
    class_center, patch_center = method.center.center.clone(), method.patch_center.center.clone()
    ours = seen_by_student(method, views)
    with torch.no_grad():
        theirs = [teacher.backbone(crop) for crop in views.global_crops]
        class_logits = [teacher.head(features.class_token) for features in theirs]
        patch_logits = [teacher.head_of_patches(features.patch_tokens) for features in theirs]
    students = [student.head(features.class_token) for features in ours]
    students += [student.head(student.backbone(crop).class_token) for crop in views.local_crops]

    class_terms = []
    for t, teacher_logits in enumerate(class_logits):
        for s, student_logits in enumerate(students):
            for b in range(BATCH):
                if t != s:
                    target = (
                        (teacher_logits[b] - class_center) / method.teacher_temp(step)
                    ).softmax(dim=-1)
                    class_terms.append(cross_entropy(target, student_logits[b]))

    patch_terms = []  # an image's own mean, and nothing of one that hides nothing
    for view, features in enumerate(ours):
        logits = student.head_of_patches(features.patch_tokens)
        for b in range(BATCH):
            hidden = views.masks[view, b].nonzero().tolist()
            terms = []
            for row, column in hidden:
                target = (
                    (patch_logits[view][b, row, column] - patch_center) / method.patch_temp(step)
                ).softmax(dim=-1)
                terms.append(cross_entropy(target, logits[b, row, column]))
            patch_terms.append(torch.stack(terms).mean() if terms else torch.zeros(()))

    loss = torch.stack(class_terms).mean() + weight * torch.stack(patch_terms).mean()
    class_mean = torch.cat(class_logits).mean(dim=0)
    # of all patches, hidden or not
    patch_mean = torch.cat([logits.flatten(0, 2) for logits in patch_logits]).mean(dim=0)
    return loss, 0.9 * class_center + 0.1 * class_mean, 0.9 * patch_center + 0.1 * patch_mean


@pytest.mark.parametrize("heads", HEADS)
def test_step_equals_algorithm_1(heads: str) -> None:
    temps = [
        "ibot.teacher_temp=0.05",
        "ibot.teacher_temp_end=0.1",
        "dino.teacher_temp_steps=10",
        "ibot.weight=0.7",
    ]
    method, views = drawn_method(of("ibot", *HEADS[heads], *temps)), random_views()
    assert method.patch_temp(7) == pytest.approx(0.085)
    loss, center, patch_center = algorithm_1(method, views, step=7, weight=0.7)
    method.zero_grad()
    loss.backward()
    expected = gradients(method)
    result, _ = take_step(method, views, step=7)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients(method), expected)
    assert {
        name for name, _ in method.named_parameters() if name.startswith("student.")
    } == expected.keys()
    torch.testing.assert_close(method.center.center, center)
    torch.testing.assert_close(method.patch_center.center, patch_center)


def test_patches_share_the_head_unless_given_their_own() -> None:
    shared, own = make_teacher(of("ibot")), make_teacher(of("ibot", OWN_HEAD))
    assert shared.student.head_of_patches is shared.student.head
    assert [*shared.student.heads()] == ["head"]
    assert own.student.head_of_patches is own.student.patch_head
    assert [*own.student.heads()] == ["head", "patch_head"]
    assert own.patch_center.center.shape == (12,)
    assert shared.patch_center.center.shape == (16,)


def test_masks_hide_patches_from_the_student_alone() -> None:
    method = drawn_method(of("ibot"))
    hidden, whole = (
        random_views(),
        random_views(masks=torch.zeros(2, BATCH, 4, 4, dtype=torch.bool)),
    )
    with torch.no_grad():
        assert torch.equal(
            method.teacher_forward(hidden).class_logits, method.teacher_forward(whole).class_logits
        )
        (targets,), _ = method.make_targets([method.teacher_forward(hidden)], step=0)
        ours, plain = (
            method.student_outputs(views, targets, generators()).class_logits
            for views in (hidden, whole)
        )
    masked = torch.tensor(MASK_NUMBERS).view(2, BATCH) > 0
    for view in range(2):
        for b in range(BATCH):
            assert torch.allclose(ours[view, b], plain[view, b], atol=1e-5) != masked[view, b]
    torch.testing.assert_close(ours[2:], plain[2:])


def test_step_without_masked_patches_has_no_patch_loss() -> None:
    method, views = (
        drawn_method(of("ibot")),
        random_views(masks=torch.zeros(2, BATCH, 4, 4, dtype=torch.bool)),
    )
    result, _ = take_step(method, views, step=0)
    assert result.logged["ibot_loss"].item() == 0.0
    assert result.loss.item() == pytest.approx(result.logged["dino_loss"].item())
    assert all(gradient.isfinite().all() for gradient in gradients(method).values())


def test_student_learns_nothing_of_a_fully_masked_image() -> None:
    method, views = (
        drawn_method(of("ibot")),
        random_views(masks=torch.ones(2, BATCH, 4, 4, dtype=torch.bool)),
    )
    result, targets = take_step(method, views, step=0)
    assert targets.patch_probs.shape == (2 * BATCH * 16, 16)
    assert result.loss.isfinite()
    torch.testing.assert_close(
        result.class_tokens, result.class_tokens[:1].expand(BATCH, -1), rtol=1e-4, atol=1e-4
    )


def test_sinkhorn_patch_targets_use_all_prototypes_equally() -> None:
    method = drawn_method(
        of("ibot", "dino.centering=sinkhorn", "ibot.teacher_temp=1.0", "ibot.teacher_temp_end=1.0")
    )
    before = method.patch_center.center.clone()
    _, targets = take_step(method, random_views(), step=0)
    assert targets.patch_probs.shape == (int(some_masks().sum()), 16)
    torch.testing.assert_close(
        targets.patch_probs.sum(dim=0),
        torch.full((16,), len(targets.patch_probs) / 16),
        rtol=0.1,
        atol=0,
    )
    assert torch.equal(method.patch_center.center, before)


def test_micro_batches_have_the_targets_of_the_whole_batch() -> None:
    whole, parted, views = drawn_method(of("ibot")), drawn_method(of("ibot")), random_views()
    (targets,), _ = whole.make_targets([whole.teacher_forward(views)], step=0)
    parts = []
    for cut in (slice(0, 2), slice(2, BATCH)):
        masks = views.masks[:, cut]
        parts.append(
            views._replace(
                global_crops=views.global_crops[:, cut],
                masks=masks,
                masked=masks.flatten().nonzero().flatten(),
            )
        )
    of_parts, _ = parted.make_targets([parted.teacher_forward(part) for part in parts], step=0)
    class_probs = torch.cat([part.class_probs for part in of_parts], dim=1)
    torch.testing.assert_close(class_probs, targets.class_probs)
    torch.testing.assert_close(parted.center.center, whole.center.center)
    torch.testing.assert_close(parted.patch_center.center, whole.patch_center.center)


def test_mask_token_starts_at_zero_and_is_trained() -> None:
    assert not make_teacher(of("ibot")).get_parameter("student.mask_token").any()
    method = drawn_method(of("ibot"))
    take_step(method, random_views(), step=0)
    assert gradients(method)["student.mask_token"].any()


def test_prototypes_of_both_heads_are_frozen_at_first() -> None:
    method = drawn_method(of("ibot", OWN_HEAD, "dino.freeze_last_layer_steps=3"))
    for step, frozen in ((2, True), (3, False)):
        take_step(method, random_views(), step=step)
        method.before_optimizer(step=step)
        assert all(
            (head.prototypes.grad is None) == frozen for head in method.student.heads().values()
        )

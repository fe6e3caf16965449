"""The two training losses: contrast with captions, and contrast between two views of the same picture.

Shapes: B images, U distinct captions, E embedding width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def caption_contrast(
    image_BE: torch.Tensor,
    text_UE: torch.Tensor,
    caption_of_B: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """CLIP's symmetric loss with soft targets: every image that carries a caption is an equally right answer to it.

    Args:
        image_BE: image embeddings, any length.
        text_UE: embeddings of the batch's distinct captions, any length.
        caption_of_B: int64, each image's row in text_UE.
        scale: inverse temperature.

    Returns:
        Scalar loss, the mean of both directions.
    """
    from torch.nn import functional

    logits_BU = scale * functional.normalize(image_BE, dim=1) @ functional.normalize(text_UE, dim=1).T
    is_right_BU = functional.one_hot(caption_of_B, text_UE.shape[0]).to(logits_BU.dtype)
    num_right_U = is_right_BU.sum(0)
    # A caption that several images carry stands in the denominator once per image, as in CLIP's B x B matrix.
    image_loss = functional.cross_entropy(logits_BU + num_right_U.log(), caption_of_B)
    text_log_prob_UB = functional.log_softmax(logits_BU.T, dim=1)
    text_loss = -(is_right_BU.T * text_log_prob_UB).sum() / image_BE.shape[0]
    # Soft targets have an entropy that no model can get below; it is taken off so that 0 is perfect in both parts.
    floor = (num_right_U * num_right_U.log()).sum() / image_BE.shape[0]
    return 0.5 * (image_loss + text_loss - floor)


def view_contrast(first_BE: torch.Tensor, second_BE: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE over 2B views (NT-Xent): a view must find its partner among all others.

    Args:
        first_BE: embeddings of one view of each image, any length.
        second_BE: embeddings of another view of the same images, same order.
        temperature: > 0.

    Returns:
        Scalar loss.
    """
    import torch
    from torch.nn import functional

    views = functional.normalize(torch.cat([first_BE, second_BE]), dim=1)
    logits = views @ views.T / temperature
    logits = logits.masked_fill(torch.eye(len(views), dtype=torch.bool), float("-inf"))
    num_images = first_BE.shape[0]
    partner = torch.arange(2 * num_images).roll(num_images)
    return functional.cross_entropy(logits, partner)

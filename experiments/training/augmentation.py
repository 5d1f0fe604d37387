"""Augmentation: each image is shifted and mirrored at random, inside `jit`."""

import jax
import jax.numpy as jnp


def augment(
    images: jax.Array, key: jax.Array, *, shift: int, mirror: bool
) -> jax.Array:
    """Returns `images`, `[B, H, W, C]`, shifted by up to `shift` pixels each way.

    Zeros fill the border, as in a random crop of a padded image. With `mirror`, half of
    the images are mirrored left to right.
    """
    if shift == 0 and not mirror:
        return images
    *keys, mirror_key = jax.random.split(key, 3)
    each = (len(images), 1, 1, 1)
    if mirror:
        heads = jax.random.bernoulli(mirror_key, 0.5, each)
        images = jnp.where(heads, images[:, :, ::-1], images)
    for axis, axis_key in zip((1, 2), keys, strict=True):
        size = images.shape[axis]
        moves = jax.random.randint(axis_key, each, 0, 2 * shift + 1)
        widths = [(shift, shift) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(images, widths)
        # Selects among all shifts, because slicing single images is slow on CPU.
        for move in range(2 * shift + 1):
            moved = jax.lax.slice_in_dim(padded, move, move + size, axis=axis)
            images = jnp.where(moves == move, moved, images)
    return images

"""Draw the book's moving picture, ``book/_static/flipped-cart.svg``, from the weights beside the full-size result."""

from pathlib import Path

import torch

from metarl_lib import checkpoint, maml, results
from metarl_lib.animation import cartpole_svg, from_rollout
from metarl_lib.baseline import to_batch
from metarl_lib.cartpole import CartPole, policy_for
from metarl_lib.checkpoint import write_atomically
from metarl_lib.collect import collect
from metarl_lib.types import index_tasks

LABEL = (
    "Two panels of the same held-out cart-pole, whose motor is wired backwards, five episodes each. Left, before adaptation: "
    "every pole falls within a second. Right, after one gradient step on twenty falls: every pole stays up."
)


def main() -> None:
    torch.set_num_threads(1)
    world = CartPole("flipwide")
    policy, generator = policy_for(world), torch.Generator().manual_seed(0)
    weights = checkpoint.load(results.folder() / "maml-cartpole.pt")["MAML"]
    carts = world.sample_tasks(40, generator, "test")
    cart = index_tasks(carts, (carts.force < 0).nonzero()[:1, 0])  # the first whose motor is reversed
    before = collect(world, cart, policy, weights["params"], 20, generator)
    adapted = maml.adapt(policy, weights["params"], weights["step_sizes"], to_batch(before, 0.99, 0.97))
    after = collect(world, cart, policy, adapted, 20, generator)
    panels = [from_rollout(before, cart, caption="before"), from_rollout(after, cart, caption="after one gradient step")]
    path = Path(__file__).parent / "_static" / "flipped-cart.svg"
    write_atomically(path, cartpole_svg(panels, LABEL).encode())
    print(f"wrote {path.name}: return {before.returns.mean():.0f} before, {after.returns.mean():.0f} after")


if __name__ == "__main__":
    main()

"""Inner objectives of MAML for policies, told apart by their second derivative.

One inner step :math:`\\phi = \\theta + \\alpha \\nabla J(\\theta)` has the meta-gradient

.. math::
    \\nabla_\\theta J(\\phi) = \\bigl(I + \\alpha \\nabla^2 J(\\theta)\\bigr) \\nabla J(\\phi),

so that whoever differentiates through the step needs an estimate of a Hessian, and automatic differentiation of an inner
objective is one. All objectives here have one first derivative, the policy gradient :math:`\\sum_t \\gamma^t A_t u_t` with
:math:`u_t = \\nabla \\log \\pi(a_t | s_t)`. Their second derivatives are, of one episode,

.. math::
    \\text{log-probability} &\\quad \\sum_t \\gamma^t A_t \\nabla^2 \\log \\pi_t \\\\
    \\text{ratio} &\\quad \\sum_t \\gamma^t A_t (\\nabla^2 \\log \\pi_t + u_t u_t^\\top) \\\\
    \\text{DiCE} &\\quad \\sum_t \\gamma^t A_t \\bigl(\\nabla^2 \\log \\pi_t + u_t u_t^\\top
        + \\textstyle\\sum_{k<t} (u_k u_t^\\top + u_t u_k^\\top)\\bigr)

and only the last has :math:`\\nabla^2 J` as its expectation whatever the number of steps. First-order MAML puts 0 in its place.
See :cite:t:`rothfuss2019promp` for the first two and :cite:t:`foerster2018dice` and :cite:t:`farquhar2019loaded` for the last.

Log-probabilities, rewards and advantages are ``[task, episode, time]``, the objectives ``[task, episode]``: their mean over
episodes is what an inner step differentiates. Behind an episode's end rewards and advantages must be 0; log-probabilities
there then count for nothing. Time order matters, so that episodes must not be packed. Step t carries the weight
:math:`\\gamma^t` of a discounted objective; ``discount=1`` leaves it out, as deep reinforcement learning usually does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def magic_box(x: Tensor) -> Tensor:
    """1 in value, with the derivative of exp(x): :math:`\\exp(x - \\text{stop}(x))` :cite:p:`foerster2018dice`."""
    return (x - x.detach()).exp()


def log_prob(log_probs: Tensor, advantages: Tensor, discount: float = 1.0) -> Tensor:
    """:math:`\\sum_t \\gamma^t A_t \\log \\pi_t`, the naive objective. Its second derivative loses the score-function terms.

    What it keeps depends on where the zero of the rewards lies: the expectation changes when a constant is added to
    them, which leaves the problem as it is. If :math:`\\nabla^2 \\log \\pi` does not depend on the action, as for a softmax
    over logits that are linear in the parameters, and A has the exact value as its baseline, then the expectation is 0:
    differentiating twice is first-order MAML, with noise.
    """
    return _weighted(log_probs, advantages, discount)


def ratio(log_probs: Tensor, advantages: Tensor, discount: float = 1.0) -> Tensor:
    """:math:`\\sum_t \\gamma^t A_t \\pi_t / \\text{stop}(\\pi_t)`, the low-variance curvature :cite:p:`rothfuss2019promp`.

    Its Hessian is unbiased for one decision. Over several it leaves out the products of scores of different time steps,
    that is, how an earlier action changes the gradient at the states reached later.
    """
    return _weighted(magic_box(log_probs), advantages, discount)


def dice(log_probs: Tensor, rewards: Tensor, discount: float = 1.0) -> Tensor:
    """:math:`\\sum_t \\gamma^t r_t \\square\\bigl(\\sum_{k \\le t} \\log \\pi_k\\bigr)` :cite:p:`foerster2018dice`.

    A reward depends on every action up to it, and on none after. All derivatives are unbiased, and noisy: the second holds
    the square of a sum of scores.
    """
    return _weighted(magic_box(log_probs.cumsum(-1)), rewards, discount)


def loaded_dice(log_probs: Tensor, advantages: Tensor, discount: float = 1.0, decay: float = 1.0) -> Tensor:
    """:math:`\\sum_t \\gamma^t A_t \\bigl(\\square(w_t) - \\square(w_t - \\log \\pi_t)\\bigr)`,
    :math:`w_t = \\lambda w_{t-1} + \\log \\pi_t` :cite:p:`farquhar2019loaded`.

    DiCE for any advantage, so that a baseline can lower the variance; with the reward-to-go as advantage and ``decay`` λ = 1 it
    is DiCE less a constant. Smaller λ forgets earlier actions, in exchange for bias; λ = 0 is the ratio less a constant.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be in [0, 1], got {decay}")
    past, terms = torch.zeros_like(log_probs[..., 0]), []
    for now in log_probs.unbind(-1):
        past = decay * past
        terms.append(magic_box(past + now) - magic_box(past))
        past = past + now
    return _weighted(torch.stack(terms, -1), advantages, discount)


def _weighted(scores: Tensor, values: Tensor, discount: float) -> Tensor:
    if scores.shape != values.shape:
        raise ValueError(
            "log_probs and rewards or advantages must have one shape [task, episode, time], "
            f"got {tuple(scores.shape)} and {tuple(values.shape)}"
        )
    if not 0 <= discount <= 1:
        raise ValueError(f"discount must be in [0, 1], got {discount}")
    time = torch.arange(scores.shape[-1], dtype=values.dtype, device=values.device)
    return (discount**time * scores * values).sum(-1)

"""The value of a plan by enumeration: every history of scores, token counts and ends, no grid.

Written apart from the planner: beliefs are unnormalised vectors over the three states, moved by matrices.
"""

import numpy as np

from trim_graph.training.step_model import LOST, RIGHT, SLIP


class Enumeration:
    def __init__(self, model, given, *, cost=0.0, call=0.0, draft=0.0, late=True, context_moves=True):
        self.model, self.given = model, given  # given: (3, contexts, observations)
        self.cost, self.call, self.draft, self.late, self.moves = cost, call, draft, late, context_moves
        p, q = model.p_small, model.p_large
        self.keep, self.large = np.zeros((3, 3)), np.zeros((3, 3))
        self.keep[RIGHT] = [p, 0, 1 - p]
        self.keep[[LOST, SLIP], LOST] = 1
        self.large[[RIGHT, SLIP]] = [q, 0, 1 - q]
        self.large[LOST, LOST] = 1
        self.tokens = np.unique(model.large_tokens, return_counts=True)

    def value(self, budget=np.inf):
        p = self.model.p_small
        return self.before(0, np.array([p, 0, 1 - p]), self.given.shape[1] - 1, budget)

    def context(self, context, observation):
        return min(context, observation) if self.moves else context

    def before(self, step, belief, context, left):
        total = -self.draft * belief.sum()
        hazard = self.model.hazard[step]
        counts, times = self.tokens
        for seen in range(self.given.shape[2]):
            joint = belief * self.given[:, context, seen]
            if joint.sum() == 0:
                continue
            for tokens, weight in zip(counts, times / times.sum(), strict=True):
                for ends, chance in ((True, hazard), (False, 1 - hazard)):
                    if chance:
                        total += chance * weight * self.decide(step, joint, context, seen, tokens, ends, left)
        return total

    def decide(self, step, joint, context, seen, tokens, ends, left):
        after = self.context(context, seen)
        accept = 100 * joint[RIGHT] if ends else self.before(step + 1, joint @ self.keep, after, left)
        if tokens > left:
            return accept
        written = joint @ self.large
        price = (self.cost * tokens + self.call) * joint.sum()
        if ends:
            return max(accept, 100 * written[RIGHT] - price)
        rest = left - tokens
        if not self.late:
            return max(accept, self.before(step + 1, written @ self.keep, context, rest) - price)
        again = sum(
            self.before(
                step + 1,
                (written * self.given[:, context, score]) @ self.keep,
                self.context(context, score),
                rest,
            )
            for score in range(self.given.shape[2])
        )
        return max(accept, again - price)

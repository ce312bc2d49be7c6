"""Bilevel reinforcement learning: small decision processes, and upper levels as sums."""

from jaxsac.problems.bilevel_rl.beds import (
    FourRooms as FourRooms,
    RewardBed as RewardBed,
    Segments as Segments,
    Stackelberg as Stackelberg,
    bandit_bed as bandit_bed,
    enumerate_segments as enumerate_segments,
    four_rooms as four_rooms,
    preference_loss as preference_loss,
    random_reward_bed as random_reward_bed,
    sampled_preference_loss as sampled_preference_loss,
    shaping_features as shaping_features,
    stackelberg as stackelberg,
)
from jaxsac.problems.bilevel_rl.linear_quadratic import (
    LinearQuadratic as LinearQuadratic,
    linear_quadratic as linear_quadratic,
)

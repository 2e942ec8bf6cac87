"""Short word problems: quantities, prices, rates and sharing, with facts that do not matter.

Each story is a function that tells a short sequence of events. What must not be seen twice is the pair of
story and object: a test holds out "the sharing of waffles", while sharing and waffles are both trained on
(an object that belongs to one story only, held out, is new altogether).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .problems import Kind, Operand, Operation, Problem, Result, render, stated_result

_NAMES = [
    "Mia",
    "Tom",
    "Ben",
    "Ana",
    "Leo",
    "Eva",
    "Max",
    "Ida",
    "Sam",
    "Zoe",
    "Paul",
    "Nora",
    "Omar",
    "Lena",
    "Ravi",
    "Rosa",
    "Hugo",
    "Vera",
    "Finn",
    "Kim",
]
_THINGS = [
    "marbles",
    "stamps",
    "apples",
    "shells",
    "cards",
    "books",
    "pencils",
    "stickers",
    "coins",
    "beads",
    "plums",
    "candles",
    "buttons",
    "lemons",
    "photos",
    "balls",
    "ribbons",
    "tickets",
    "badges",
    "pears",
]
_PASTRY = [
    "waffles",
    "muffins",
    "rolls",
    "tarts",
    "buns",
    "cookies",
    "bagels",
    "cakes",
    "pies",
    "scones",
    "pretzels",
    "donuts",
]
_PLANTS = [
    "tulips",
    "roses",
    "trees",
    "bushes",
    "herbs",
    "beans",
    "carrots",
    "lilies",
    "onions",
    "daisies",
    "peppers",
    "ferns",
]
_JOBS = [
    "washing cars",
    "painting fences",
    "walking dogs",
    "mowing lawns",
    "raking leaves",
    "cleaning windows",
    "picking cherries",
    "stacking shelves",
    "sorting mail",
    "feeding horses",
]
_VEHICLES = ["bus", "train", "ferry", "tram", "boat", "plane", "subway", "shuttle", "van", "coach"]
_READING = ["novel", "diary", "comic", "atlas", "report", "play", "manual", "guide", "journal", "cookbook"]
_LIQUIDS = ["water", "milk", "oil", "juice", "wine", "soup", "paint", "tea", "syrup", "vinegar"]
_DISTRACTIONS = (
    "It is {n} degrees outside.",
    "{other} is {n} years old.",
    "The nearest town is {n} miles away.",
    "The house number is {n}.",
    "{other} arrived {n} minutes late.",
    "The room is painted blue and has {n} windows.",
    "Last year {other} owned {n} hats.",
    "The radio plays song number {n}.",
)


class _Impossible(Exception):
    """The drawn numbers do not work out; draw again."""


class _Story:
    """Collects the sentences and operations of one problem, and keeps every value in 0..99."""

    def __init__(self, rng: random.Random, objects: str) -> None:
        self.rng = rng
        self.name, self.other = rng.sample(_NAMES, 2)
        self.objects = objects
        self.sentences: list[str] = []
        self.operations: list[Operation] = []
        self._values: list[int] = []

    def number(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def say(self, *phrasings: str, **numbers: int) -> None:
        words = {"name": self.name, "other": self.other, "obj": self.objects}
        self.sentences.append(self.rng.choice(phrasings).format(**words, **numbers))

    def value(self, operand: Operand) -> int:
        return operand if isinstance(operand, int) else self._values[operand.step]

    def step(self, kind: Kind, left: Operand, right: Operand, lead: str, tail: str) -> Result:
        words = {"name": self.name, "other": self.other, "obj": self.objects}
        operation = Operation(kind, left, right, f"{lead.format(**words)} ", f" {tail.format(**words)}.")
        text = render(operation, self.value(left), self.value(right))
        result = None if text is None else stated_result(text)
        if result is None or not 1 <= result <= 99:
            raise _Impossible
        self._values.append(result)
        self.operations.append(operation)
        return Result(len(self._values) - 1)

    def divisor(self, operand: Operand, low: int = 2, high: int = 9) -> int:
        fitting = [d for d in range(low, high + 1) if self.value(operand) % d == 0]
        if not fitting:
            raise _Impossible
        return self.rng.choice(fitting)

    def maybe(self, chance: float = 0.6) -> bool:
        return self.rng.random() < chance


def _collection(s: _Story) -> None:
    start, packs, size = s.number(11, 60), s.number(2, 6), s.number(3, 9)
    s.say("{name} has {n} {obj}.", "There are {n} {obj} in the box of {name}.", n=start)
    s.say(
        "{name} gets {p} packs with {k} {obj} each.",
        "Then {name} buys {p} packs of {k} {obj}.",
        p=packs,
        k=size,
    )
    bought = s.step("multiply", packs, size, "The packs hold", "{obj}")
    now = s.step("add", start, bought, "Now {name} has", "{obj}")
    if s.maybe():
        gift = s.number(2, 30)
        s.say("{name} gives {g} {obj} to {other}.", "{other} takes {g} of the {obj}.", g=gift)
        now = s.step("subtract", now, gift, "Without the gift there are", "{obj}")
    if s.maybe():
        found = s.number(2, 30)
        s.say("Later {name} finds {f} more {obj}.", "An aunt sends {f} more {obj}.", f=found)
        s.step("add", now, found, "With the new ones there are", "{obj}")
    s.say("How many {obj} does {name} have now?", "How many {obj} are there at the end?")


def _shopping(s: _Story) -> None:
    count, price, other, money = s.number(2, 8), s.number(2, 9), s.number(3, 25), s.number(60, 99)
    s.say(
        "{name} buys {c} {obj} for {p} dollars each.",
        "At the shop {name} pays {p} dollars for each of {c} {obj}.",
        c=count,
        p=price,
    )
    s.say("A bag costs {o} dollars more.", "{name} also takes a bag for {o} dollars.", o=other)
    cost = s.step("multiply", count, price, "The {obj} cost", "dollars")
    total = s.step("add", cost, other, "With the bag it is", "dollars")
    if s.maybe(0.4):
        off = s.number(2, 9)
        s.say("A coupon takes {d} dollars off.", "There is a discount of {d} dollars.", d=off)
        total = s.step("subtract", total, off, "After the discount it is", "dollars")
    s.say("{name} pays with {m} dollars.", "{name} had {m} dollars before.", m=money)
    s.step("subtract", money, total, "What is left is", "dollars")
    s.say("How much money is left?", "How many dollars does {name} get back?")


def _bakery(s: _Story) -> None:
    trays, size, sold = s.number(3, 9), s.number(4, 12), s.number(5, 40)
    s.say(
        "A bakery makes {t} trays of {k} {obj}.",
        "{name} bakes {t} trays with {k} {obj} on each.",
        t=trays,
        k=size,
    )
    baked = s.step("multiply", trays, size, "The trays hold", "{obj}")
    s.say("In the morning {n} {obj} are sold.", "{other} buys {n} of the {obj}.", n=sold)
    left = s.step("subtract", baked, sold, "After the sale there are", "{obj}")
    if s.maybe():
        more = s.number(2, 30)
        s.say("Then {m} more {obj} come from the oven.", "{name} bakes {m} more {obj}.", m=more)
        left = s.step("add", left, more, "With the fresh ones there are", "{obj}")
    boxes = s.divisor(left)
    s.say(
        "The rest goes into {b} equal boxes.",
        "{name} puts the rest into {b} boxes, the same number in each.",
        b=boxes,
    )
    s.step("divide", left, boxes, "Each box gets", "{obj}")
    s.say("How many {obj} are in a box?", "How many {obj} does each box hold?")


def _reading(s: _Story) -> None:
    pages, days, before, total = s.number(3, 9), s.number(2, 8), s.number(2, 30), s.number(70, 99)
    s.say("{name} reads a {obj} of {t} pages.", "The {obj} on the desk of {name} has {t} pages.", t=total)
    s.say("{b} pages were read last week.", "{name} has already read {b} pages.", b=before)
    s.say(
        "Now {name} reads {p} pages a day for {d} days.",
        "For {d} days {name} reads {p} pages every day.",
        p=pages,
        d=days,
    )
    read = s.step("multiply", pages, days, "In these days {name} reads", "pages")
    done = s.step("add", before, read, "In all {name} has read", "pages")
    left = s.step("subtract", total, done, "What remains is", "pages")
    if s.maybe(0.4):
        share = s.divisor(left, 2, 7)
        s.say("The rest is read in {k} days, the same number of pages a day.", k=share)
        s.step("divide", left, share, "Each day takes", "pages")
        s.say("How many pages is that a day?")
    else:
        s.say("How many pages are left?", "How many pages of the {obj} are still to read?")


def _trip(s: _Story) -> None:
    speed, hours, walk = s.number(4, 20), s.number(2, 6), s.number(2, 20)
    s.say(
        "A {obj} goes {v} miles an hour for {h} hours.",
        "{name} takes a {obj} for {h} hours at {v} miles an hour.",
        v=speed,
        h=hours,
    )
    s.say("Then {name} walks {w} miles.", "After that {name} walks {w} miles.", w=walk)
    ride = s.step("multiply", speed, hours, "The {obj} covers", "miles")
    total = s.step("add", ride, walk, "With the walk it is", "miles")
    if s.maybe():
        back = s.number(2, 20)
        s.say("{name} turns around and comes {b} miles back.", "Then {name} goes back {b} miles.", b=back)
        total = s.step("subtract", total, back, "After turning around it is", "miles")
    if s.maybe(0.3):
        s.say("On the next day {name} goes twice as far in all.")
        s.step("double", total, 2, "On the next day it is", "miles")
        s.say("How many miles is that on the next day?")
    else:
        s.say("How far from the start is {name}?", "How many miles away is {name} now?")


def _garden(s: _Story) -> None:
    rows, size, dead = s.number(3, 9), s.number(3, 9), s.number(2, 15)
    s.say(
        "{name} plants {r} rows of {k} {obj}.",
        "In the garden there are {r} rows with {k} {obj} in each.",
        r=rows,
        k=size,
    )
    s.say("{d} of the {obj} die in the cold.", "A storm kills {d} {obj}.", d=dead)
    planted = s.step("multiply", rows, size, "The rows hold", "{obj}")
    alive = s.step("subtract", planted, dead, "After the loss there are", "{obj}")
    if s.maybe():
        added = s.number(2, 30)
        s.say("{other} brings {a} new {obj}.", "{name} adds {a} {obj} in spring.", a=added)
        alive = s.step("add", alive, added, "With the new ones there are", "{obj}")
    if s.maybe(0.5):
        sold = s.number(2, 25)
        s.say("{name} sells {k} of them.", "{k} of them are sold on the market.", k=sold)
        s.step("subtract", alive, sold, "After the sale there are", "{obj}")
    s.say("How many {obj} are in the garden?", "How many {obj} are left?")


def _wages(s: _Story) -> None:
    rate, hours, tip, spent = s.number(4, 15), s.number(2, 6), s.number(2, 20), s.number(5, 40)
    s.say("{name} earns {r} dollars an hour by {obj}.", "For {obj} {name} gets {r} dollars an hour.", r=rate)
    s.say("{name} works {h} hours.", "The work takes {h} hours.", h=hours)
    pay = s.step("multiply", rate, hours, "The pay is", "dollars")
    if s.maybe():
        s.say("There is a tip of {t} dollars.", "{other} adds a tip of {t} dollars.", t=tip)
        pay = s.step("add", pay, tip, "With the tip it is", "dollars")
    s.say("{name} spends {x} dollars on food.", "Food costs {name} {x} dollars.", x=spent)
    left = s.step("subtract", pay, spent, "After the food it is", "dollars")
    if s.maybe(0.4):
        friends = s.divisor(left)
        s.say("The rest is shared equally by {f} people.", f=friends)
        s.step("divide", left, friends, "Each of them gets", "dollars")
        s.say("How many dollars does each of them get?")
    else:
        s.say("How many dollars are left?", "How much does {name} keep?")


def _sharing(s: _Story) -> None:
    first, second, eaten = s.number(11, 50), s.number(5, 45), s.number(2, 12)
    s.say(
        "{name} has {a} {obj} and {other} has {b} {obj}.",
        "{name} brings {a} {obj}, {other} brings {b}.",
        a=first,
        b=second,
    )
    total = s.step("add", first, second, "Together they have", "{obj}")
    if s.maybe():
        s.say("{e} of the {obj} get lost.", "They throw away {e} bad {obj}.", e=eaten)
        total = s.step("subtract", total, eaten, "Without the lost ones there are", "{obj}")
    friends = s.divisor(total)
    s.say(
        "The {obj} are shared equally by {f} friends.", "{f} friends get the same number of {obj}.", f=friends
    )
    share = s.step("divide", total, friends, "Each friend gets", "{obj}")
    if s.maybe(0.5):
        extra = s.number(2, 25)
        s.say("One friend buys {x} more.", "One of the friends already had {x} {obj}.", x=extra)
        s.step("add", share, extra, "This friend has", "{obj}")
        s.say("How many {obj} does this friend have?")
    else:
        s.say("How many {obj} does each friend get?")


def _passengers(s: _Story) -> None:
    start = s.number(20, 70)
    s.say("A {obj} leaves with {n} people.", "There are {n} people on a {obj}.", n=start)
    now: Operand = start
    for stop in ("first", "second", "third")[: s.number(2, 3)]:
        off, on = s.number(2, 19), s.number(2, 19)
        if s.maybe(0.5):
            s.say(f"At the {stop} stop {{x}} people get off.", x=off)
            now = s.step("subtract", now, off, f"After the {stop} stop there are", "people")
        else:
            s.say(f"At the {stop} stop {{x}} people get on.", x=on)
            now = s.step("add", now, on, f"After the {stop} stop there are", "people")
    if s.maybe(0.4):
        s.say("Each ticket costs 2 dollars, and everybody still on board pays.")
        s.step("double", now, 2, "The tickets cost", "dollars")
        s.say("How many dollars are paid?")
    else:
        s.say("How many people are on the {obj} now?")


def _savings(s: _Story) -> None:
    weekly, weeks, start, goal = s.number(3, 12), s.number(2, 8), s.number(2, 30), s.number(75, 99)
    s.say(
        "{name} saves for a box of {obj} that costs {g} dollars.", "A box of {obj} costs {g} dollars.", g=goal
    )
    s.say("{name} has {n} dollars and saves {w} dollars a week for {k} weeks.", n=start, w=weekly, k=weeks)
    saved = s.step("multiply", weekly, weeks, "In these weeks {name} saves", "dollars")
    total = s.step("add", start, saved, "In all {name} has", "dollars")
    if s.maybe(0.5):
        gift = s.number(2, 15)
        s.say("{other} gives {name} {x} dollars.", "For the birthday there are {x} dollars.", x=gift)
        total = s.step("add", total, gift, "With the present it is", "dollars")
    s.step("subtract", goal, total, "What is missing is", "dollars")
    s.say("How many dollars are missing?", "How much more does {name} need?")


def _tank(s: _Story) -> None:
    rate, minutes, start, used = s.number(3, 9), s.number(3, 9), s.number(5, 40), s.number(2, 30)
    s.say("A tank holds {n} liters of {obj}.", "There are {n} liters of {obj} in a tank.", n=start)
    s.say(
        "{r} liters flow in every minute for {m} minutes.",
        "For {m} minutes {r} liters a minute flow in.",
        r=rate,
        m=minutes,
    )
    inflow = s.step("multiply", rate, minutes, "What flows in is", "liters")
    now = s.step("add", start, inflow, "Then the tank holds", "liters")
    s.say("{name} takes out {u} liters.", "Then {u} liters are used.", u=used)
    now = s.step("subtract", now, used, "After that there are", "liters")
    if s.maybe(0.4):
        bottles = s.divisor(now)
        s.say("The rest fills {b} equal bottles.", b=bottles)
        s.step("divide", now, bottles, "Each bottle holds", "liters")
        s.say("How many liters does each bottle hold?")
    else:
        s.say("How many liters of {obj} are left?")


def _packing(s: _Story) -> None:
    boxes, size, loose, goal = s.number(2, 9), s.number(3, 12), s.number(2, 20), s.number(2, 5)
    s.say(
        "{name} packs {b} boxes with {k} {obj} each.",
        "There are {b} boxes, each with {k} {obj}.",
        b=boxes,
        k=size,
    )
    s.say("{x} {obj} do not fit.", "{x} more {obj} lie beside the boxes.", x=loose)
    packed = s.step("multiply", boxes, size, "In the boxes there are", "{obj}")
    total = s.step("add", packed, loose, "With the loose ones there are", "{obj}")
    if s.maybe(0.5):
        broken = s.number(2, 15)
        s.say("{y} of them are broken.", "{other} breaks {y} of them.", y=broken)
        total = s.step("subtract", total, broken, "Without the broken ones there are", "{obj}")
    if s.maybe(0.4) and s.value(total) * goal <= 99:
        s.say("{name} has {g} times as many at home.", g=goal)
        s.step("multiply", total, goal, "At home there are", "{obj}")
        s.say("How many {obj} are at home?")
    else:
        s.say("How many {obj} are there in all?")


STORIES: dict[str, tuple[Callable[[_Story], None], Sequence[str]]] = {
    "collection": (_collection, _THINGS),
    "shopping": (_shopping, _THINGS),
    "bakery": (_bakery, _PASTRY),
    "reading": (_reading, _READING),
    "trip": (_trip, _VEHICLES),
    "garden": (_garden, _PLANTS),
    "wages": (_wages, _JOBS),
    "sharing": (_sharing, _THINGS + _PASTRY),
    "passengers": (_passengers, _VEHICLES),
    "savings": (_savings, _THINGS),
    "tank": (_tank, _LIQUIDS),
    "packing": (_packing, _THINGS + _PASTRY),
}
"""Every story with the objects it can be told of."""


def draw_words(rng: random.Random) -> Problem:
    """Draws one word problem, of any part (`problems.part_of` says which)."""
    title = rng.choice(list(STORIES))
    tell, objects = STORIES[title]
    thing = rng.choice(objects)
    while True:
        story = _Story(rng, thing)
        try:
            tell(story)
        except _Impossible:
            continue
        break
    sentences = story.sentences
    for _ in range(rng.choice((0, 1, 1, 2))):
        fact = rng.choice(_DISTRACTIONS).format(n=rng.randint(2, 99), other=story.other)
        sentences.insert(rng.randint(1, len(sentences) - 1), fact)
    return Problem("words", " ".join(sentences), tuple(story.operations), f"{title} of {thing}")


def fixed_leads() -> set[str]:
    """Returns the beginnings of steps that hold neither a name nor an object; tokens of their own."""
    rng = random.Random("leads")
    seen: dict[str, set[str]] = {}
    for _ in range(4000):
        problem = draw_words(rng)
        for operation in problem.operations:
            seen.setdefault(operation.lead.strip(), set()).add(problem.combination)
    return {lead for lead, told in seen.items() if len(told) > 5 and not set(lead.split()) & set(_NAMES)}

"""The words of the embedded task: names and things, what customers write, and how each act of a reply may sound."""

from collections.abc import Mapping
from typing import NamedTuple


class Words(NamedTuple):
    """What tickets are made of."""

    names: tuple[str, ...]
    items: tuple[str, ...]
    faults: tuple[str, ...]
    orders: tuple[str, ...]
    tickets: Mapping[str, tuple[str, ...]]
    """Wordings by intent."""


NAMES = (
    "Amara", "Boris", "Clara", "Daniel", "Esther", "Felix", "Gloria", "Henrik", "Irene", "Jakob", "Kamala", "Lars",
    "Miriam", "Noah", "Olga", "Pedro", "Rosa", "Stefan", "Tara", "Umar", "Viola", "Walter", "Yara",
)  # fmt: skip
ITEMS = (
    "armchair", "bicycle", "blender", "camera", "curtain", "desk", "drill", "heater", "helmet", "kettle", "mirror",
    "mixer", "piano", "radio", "rug", "tent",
)  # fmt: skip
FAULTS = ("broken", "chipped", "stained", "bent", "dusty", "burnt")
ORDERS = tuple(str(number) for number in range(201, 281))
"""Few enough, and often enough in the corpus, to become one token each."""


TICKETS = {
    "damaged": (
        "Good day, {name} speaking. My {item} arrived {fault} {age} ago, order {order}. How can you help?",
        "The {item} in order {order} is {fault}! It got here {age} ago. {name}",
        "I am {name} and my {item} turned up {fault}. Order {order} came {age} ago. What now?",
    ),
    "late": (
        "Good day, {name} speaking. I paid for a {item} {age} ago, order {order}, but it never came. What happened?",
        "Still no {item} after {age}! Where is order {order}? {name}",
        "I am {name} and I wait for order {order}. It is {age} since I bought the {item}. Any update?",
    ),
    "wrong_item": (
        "Good day, {name} speaking. My parcel came {age} ago without the {item} of order {order}, but with others.",
        "This is no {item}! Order {order} brought me a different product {age} ago. {name}",
        "I am {name}. The box of order {order} held a stranger's goods {age} ago, where is my {item}?",
    ),
    "cancel": (
        "Good day, {name} speaking. I made order {order} for a {item} {age} ago and changed my mind. Can you stop it?",
        "Do not ship the {item}! Order {order} is {age} old and must be cancelled. {name}",
        "I am {name} and have no use for the {item} now. I made order {order} {age} ago, please cancel.",
    ),
    "return": (
        "Good day, {name} speaking. I would like to give back the {item} of order {order} that came {age} ago.",
        "This {item} does not suit me! I got order {order} {age} ago and will return it. {name}",
        "I am {name} and the {item} of order {order} disappoints me. It came {age} ago, can it go back?",
    ),
}

KNOWN = Words(NAMES, ITEMS, FAULTS, ORDERS, TICKETS)
"""The words of all records but the prompts that are meant to be unlike them (see `unlike_phrases`)."""

PHRASES: dict[str, tuple[str, ...]] = {
    "greet": ("Good day {name}.", "Thank you {name}.", "Welcome back {name}."),
    "empathy": (
        "That must be a nuisance.",
        "We regret the hassle.",
        "Your disappointment is clear.",
        "Accept our apology please.",
    ),
    "ack": (
        "Your {item} is under order {order}.",
        "I opened order {order} for the {item}.",
        "I have order {order} with the {item} here.",
    ),
    "refund": ("You get your money back.", "The whole price returns to you.", "I booked a full refund."),
    "replace": ("A new one ships at no cost.", "I picked a fresh one for you.", "You will receive a replacement."),
    "repair": ("Our technician will mend it.", "We can have it repaired.", "I set up a repair."),
    "track": ("The parcel is still on its way.", "Here is a link to follow it.", "The courier is on time."),
    "reship": (
        "The parcel got lost, another one leaves today.",
        "I sent the same thing again.",
        "A second package goes out.",
    ),
    "label": (
        "Swap it with the mailed sticker.",
        "I mailed a return sticker for the swap.",
        "The correct one comes with a sticker.",
    ),
    "cancel": ("I took it out of the queue.", "The order will not ship.", "Your purchase has been cancelled."),
    "credit": ("I put a voucher on your account.", "You can have a shop voucher.", "A voucher covers the amount."),
    "decline": (
        "It is too late to give it back.",
        "The time for returns is over.",
        "We are unable to accept it now.",
    ),
    "sla": ("Count on {span} for that.", "It will be done in {span}.", "That needs {span}."),
    "close": ("Write again whenever you like.", "Is there more to solve?", "We are here if you need us."),
    "filler": (
        "Quality is dear to our hearts.",
        "Our shop lives for its guests.",
        "It is a joy to serve you.",
        "Every order makes us proud.",
    ),
    "promise": (
        "I swear it will be at your door tomorrow.",
        "You may keep everything and pay nothing.",
        "This can never go wrong again.",
    ),
    "rude": ("Next time pay attention.", "Do not blame us for it.", "Try to be less difficult."),
}
"""What each act of a reply sounds like. The last three are defects."""

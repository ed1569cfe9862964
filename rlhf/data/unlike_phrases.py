"""Words that no training record of the embedded task has, for prompts unlike the training prompts.

The facts are of the same kinds, so that a right reply is still known and the rubric still applies: what changes is who
writes, about what, under which number and in which words. A model that has met each name as one token cannot be
expected to copy one that it never saw, so the two shifts are also made one at a time.
"""

from rlhf.data.phrases import KNOWN, Words

UNLIKE = Words(
    names=(
        "Astrid", "Bruno", "Cecilia", "Dmitri", "Elena", "Farid", "Greta", "Hassan", "Ingrid", "Jonas", "Katya", "Leon",
        "Mona", "Nadia", "Oscar", "Paula",
    ),
    items=(
        "bookcase", "carpet", "freezer", "guitar", "kayak", "ladder", "printer", "scooter", "sofa", "stroller",
        "telescope", "toaster",
    ),
    faults=("cracked", "dented", "leaking", "rusty", "scratched", "torn"),
    orders=tuple(str(number) for number in range(301, 381)),
    tickets={
        "damaged": (
            "Hello team, {age} back you delivered my {item} and it was {fault}. Reference {order}. Yours, {name}",
            "{name} writing about number {order}: the courier left a {fault} {item} here {age} ago. Please advise.",
            "Unpacked the {item} {age} ago only to find it {fault}. Reference {order}. Sincerely, {name}",
        ),
        "late": (
            "Where has my {item} got to? {age} have passed since checkout, reference {order}. Yours, {name}",
            "{name} writing about number {order}: after {age} of waiting the {item} has not been delivered.",
            "Nothing was delivered so far. The {item} was charged {age} ago under {order}. Sincerely, {name}",
        ),
        "wrong_item": (
            "You sent somebody else's purchase {age} ago, not the {item}, reference {order}. Yours, {name}",
            "{name} writing about number {order}: {age} ago the courier left something, not the {item} though.",
            "Mixed up at your warehouse! Another article than the {item} was delivered {age} ago. {order}, {name}",
        ),
        "cancel": (
            "Please withdraw purchase {order}, the {item}, placed {age} ago. Sincerely, {name}",
            "{name} writing about number {order}: it was placed {age} ago, yet the {item} is no longer needed.",
            "Could you halt everything for {order}? The {item} was picked by mistake {age} ago. Yours, {name}",
        ),
        "return": (
            "The {item} is fine, only not for me. Delivered {age} ago, reference {order}. Please advise. Yours, {name}",
            "{name} writing about number {order}: it has been {age} with the {item} and keeping it makes no sense.",
            "How does one send the {item} back? Reference {order}, delivered {age} ago. Sincerely, {name}",
        ),
    },
)  # fmt: skip

SHIFTS = {
    "wording": KNOWN._replace(tickets=UNLIKE.tickets),
    "facts": UNLIKE._replace(tickets=KNOWN.tickets),
    "both": UNLIKE,
}
"""What is unlike in a prompt: its wording, the names, items, faults and order numbers in it, or everything."""

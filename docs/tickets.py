"""Writes the invented support tickets of `tutorial.md`: python docs/tickets.py FOLDER

FOLDER/tickets.csv: 500 rows (id, subject, text, team), the team of eight of them. FOLDER/answers.csv: the teams of
all, to see afterwards how right a classifier was. Put together from the parts below by a fixed seed.
"""

import csv
import random
import sys
from pathlib import Path

LABELLED = 2
"""Rows of each team whose team is given."""

PARTS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "billing": (
        ["Charged twice", "Question about my invoice", "Refund please", "Wrong amount", "Payment declined", "Receipt"],
        [
            "My card was charged {count} times for the {plan} plan.",
            "The invoice for {month} shows {price} euros more than we agreed.",
            "I was promised a refund in {month} and have seen no money yet.",
            "Your system says my payment failed, but the bank tells me it went through.",
            "The price of the {plan} plan went up and nobody told us.",
            "I need a receipt with our tax number for {month}.",
            "Why do I still pay for the {plan} plan after I cancelled?",
        ],
        [
            "Please correct the bill.",
            "Our accountant is waiting for it.",
            "I want my money back.",
            "Can you check the amount?",
            "We will not pay before this is clear.",
        ],
    ),
    "technical": (
        ["App crashes", "Error message", "Cannot connect", "Very slow", "Bug in the export", "Update broke it"],
        [
            "Since the update in {month} the app closes as soon as I open a {thing}.",
            "The server answers with error {code} whenever we upload a {thing}.",
            "Sync stops after {count} minutes and the log says timeout.",
            "The page with the {thing} stays white in my browser.",
            "Exporting a {thing} gives a file that no program can open.",
            "Everything has been slow on the {plan} plan for {count} days.",
            "The button for saving a {thing} does nothing on my phone.",
        ],
        [
            "I restarted the computer and it did not help.",
            "Is this a known bug?",
            "It worked before the new version.",
            "I can send you the log.",
            "Please fix the software.",
        ],
    ),
    "delivery": (
        ["Where is my parcel", "Package damaged", "Wrong address", "Late again", "Missing item", "Tracking"],
        [
            "The parcel with the {thing} was to arrive in {month} and is not here.",
            "The courier left the box in the rain and the {thing} is wet.",
            "Tracking has not moved for {count} days.",
            "Only {count} of the boxes came, the {thing} is missing.",
            "The driver went to our old address, although I changed it in {month}.",
            "I received a {thing} that I never ordered.",
            "Nobody rang, yet the card says that I was not at home.",
        ],
        [
            "When will it be shipped?",
            "Please send it again.",
            "I have been waiting at home all day.",
            "Can the carrier bring it on Saturday?",
            "We need the delivery this week.",
        ],
    ),
    "account": (
        ["Cannot log in", "Forgot my password", "Close my profile", "New colleague", "Locked out", "Change of name"],
        [
            "I forgot my password and the mail to reset it never comes.",
            "After {count} attempts my login is locked.",
            "A colleague joined in {month} and needs a user on our {plan} plan.",
            "Please delete my profile and everything that you know about me.",
            "I have a new phone and cannot confirm that it is me.",
            "My name changed in {month}, how do I change it in my profile?",
            "Somebody else signed in as me {count} days ago.",
        ],
        [
            "How do I get back in?",
            "Please unlock my user.",
            "I have the username but no access.",
            "Who may give permissions in our group?",
            "Please confirm by mail.",
        ],
    ),
}
SLOTS = {
    "code": ["404", "500", "503"],
    "price": ["12", "20", "45"],
    "count": ["two", "three", "four", "five"],
    "plan": ["basic", "team", "family", "gold"],
    "month": ["January", "March", "May", "June", "September", "October"],
    "thing": ["report", "photo", "table", "calendar", "lamp", "drawing", "book"],
}


def rows(count: int = 500, seed: int = 0) -> list[dict[str, str]]:
    """Different tickets (id, subject, text, team), as many of each team as of the others, in an order by chance."""
    chance = random.Random(seed)
    found: dict[str, dict[str, str]] = {}
    teams = list(PARTS)
    while len(found) < count:
        team = teams[len(found) % len(teams)]
        subjects, first, last = PARTS[team]
        text = f"{chance.choice(first)} {chance.choice(last)}"
        text = text.format(**{name: chance.choice(words) for name, words in SLOTS.items()})
        subject = chance.choice(subjects)
        found.setdefault(f"{subject} {text}", {"subject": subject, "text": text, "team": team})
    mixed = list(found.values())
    chance.shuffle(mixed)
    return [{"id": f"T{number:03}", **row} for number, row in enumerate(mixed, 1)]


def hide(tickets: list[dict[str, str]], labelled: int = LABELLED) -> list[dict[str, str]]:
    """The same without their teams, except for the first `labelled` rows of each."""
    left = dict.fromkeys(PARTS, labelled)
    hidden = []
    for row in tickets:
        left[row["team"]] -= 1
        hidden.append({**row, "team": row["team"] if left[row["team"]] >= 0 else ""})
    return hidden


def write(folder: Path, count: int = 500, seed: int = 0) -> None:
    """tickets.csv and answers.csv."""
    tickets = rows(count, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("tickets.csv", hide(tickets)), ("answers.csv", tickets)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(content)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

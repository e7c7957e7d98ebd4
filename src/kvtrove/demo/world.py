"""The small world of the demo model: facts that are stated and asked again, and small talk in between.

Its training data are drawn from here, and so are the dialogues in which recall is measured. Nothing here repeats
between the splits: "train" and "heldout" draw from different seeds, use different pairs of phrasings (of a statement
and its question), and read prose of different modules.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kvtrove.demo import words
from kvtrove.demo.prose import paragraphs

Split = Literal["train", "heldout"]
Exchange = tuple[str, str]
"""What the user says and what the assistant answers."""


@dataclass(frozen=True)
class Fact:
    """statement and question are of the user, the others of the assistant; the answer contains the value."""

    statement: str
    acknowledgement: str
    question: str
    answer: str
    value: str
    key: str
    """What the fact is about: a world states one fact per key."""


@dataclass(frozen=True)
class Relation:
    """name: of the attribute. subject, value: draw one. The texts have {s} and {v}; the answer is one sentence.

    told: how a fact is told after each of OPENINGS; it ends as the answer does, so that recall is copying.
    loose: other ways to tell it, which training shows first.
    """

    name: str
    subject: Callable[[random.Random], str]
    value: Callable[[random.Random], str]
    told: str
    loose: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str


def _thing(rng: random.Random) -> str:
    return f"the {rng.choice(words.ADJECTIVES)} {rng.choice(words.THINGS)}"


def _person(rng: random.Random) -> str:
    return rng.choice(words.PEOPLE)


def _user(_: random.Random) -> str:
    return "user"


def _event(rng: random.Random) -> str:
    return f"the {rng.choice(words.EVENTS)} of {rng.choice(words.PEOPLE)}"


def _pick(values: list[str]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(values)


def _code(rng: random.Random) -> str:
    return "".join(rng.choice("0123456789") for _ in range(4))


def _price(rng: random.Random) -> str:
    return f"{rng.randrange(2, 100)} dollars"


def _date(rng: random.Random) -> str:
    return f"{rng.randrange(1, 29)} {rng.choice(words.MONTHS)}"


OPENINGS = ("", "Remember that ", "Please note that ", "You should know that ")
RELATIONS = (
    Relation(
        "code",
        _thing,
        _code,
        "the code of {s} is {v}.",
        (
            "The code of {s} is {v}.",
            "Remember that the code of {s} is {v}.",
            "I set the code of {s} to {v}.",
            "For {s} the code is {v}.",
        ),
        ("What is the code of {s}?", "Tell me the code of {s}.", "Which code does {s} have?", "And the code of {s}?"),
        "The code of {s} is {v}.",
    ),
    Relation(
        "colour",
        _thing,
        _pick(words.COLOURS),
        "the colour of {s} is {v}.",
        (
            "The colour of {s} is now {v}.",
            "Please note that {s} was painted {v}.",
            "Today {s} became {v}.",
            "The new colour of {s} is {v}.",
        ),
        (
            "What colour is {s} now?",
            "What is the new colour of {s}?",
            "Tell me the colour of {s}.",
            "How was {s} painted?",
        ),
        "The colour of {s} is {v}.",
    ),
    Relation(
        "price",
        _thing,
        _price,
        "the price of {s} is {v}.",
        (
            "The price of {s} is {v}.",
            "You should know that {s} costs {v}.",
            "For {s} I paid {v}.",
            "They sell {s} for {v}.",
        ),
        ("What is the price of {s}?", "How much does {s} cost?", "Tell me the price of {s}.", "How much is {s}?"),
        "The price of {s} is {v}.",
    ),
    Relation(
        "owner",
        _thing,
        _person,
        "the owner of {s} is {v}.",
        (
            "The owner of {s} is {v}.",
            "As you may know, {s} is owned by {v}.",
            "Keep in mind that {s} belongs to {v}.",
            "We gave {s} to {v}.",
        ),
        ("Who owns {s}?", "Who is the owner of {s}?", "To whom does {s} belong?", "Tell me the owner of {s}."),
        "The owner of {s} is {v}.",
    ),
    Relation(
        "password",
        _thing,
        words.invented,
        "the password of {s} is {v}.",
        (
            "The password of {s} is {v}.",
            "Remember that the password of {s} is {v}.",
            "I set the password of {s} to {v}.",
            "For {s} the password is {v}.",
        ),
        (
            "What is the password of {s}?",
            "Tell me the password of {s}.",
            "Which password does {s} have?",
            "And the password of {s}?",
        ),
        "The password of {s} is {v}.",
    ),
    Relation(
        "city",
        _person,
        _pick(words.CITIES),
        "{s} lives in {v}.",
        ("{s} lives in {v}.", "The home of {s} is in {v}.", "Last year {s} moved to {v}.", "You can find {s} in {v}."),
        (
            "Where does {s} live?",
            "In which city does {s} live?",
            "Where is the home of {s}?",
            "Tell me where {s} lives.",
        ),
        "{s} lives in {v}.",
    ),
    Relation(
        "job",
        _person,
        _pick(words.JOBS),
        "{s} works as a {v}.",
        ("{s} works as a {v}.", "The job of {s} is {v}.", "{s} became a {v}.", "My friend {s} is a {v}."),
        (
            "What is the job of {s}?",
            "What does {s} do for work?",
            "Which job does {s} have?",
            "Tell me the job of {s}.",
        ),
        "{s} works as a {v}.",
    ),
    Relation(
        "food",
        _person,
        _pick(words.FOODS),
        "{s} likes {v}.",
        ("{s} likes {v}.", "The favourite food of {s} is {v}.", "Most of all {s} eats {v}.", "{s} always orders {v}."),
        (
            "What does {s} like to eat?",
            "What is the favourite food of {s}?",
            "Tell me what {s} eats.",
            "Which food does {s} like?",
        ),
        "{s} likes {v}.",
    ),
    Relation(
        "pet",
        lambda rng: f"the {rng.choice(words.PETS)} of {rng.choice(words.PEOPLE)}",
        words.invented,
        "the name of {s} is {v}.",
        (
            "The name of {s} is {v}.",
            "They call {s} {v}.",
            "We gave {s} the name {v}.",
            "Remember that {s} is called {v}.",
        ),
        ("What is the name of {s}?", "How do they call {s}?", "Tell me the name of {s}.", "Which name does {s} have?"),
        "The name of {s} is {v}.",
    ),
    Relation(
        "date",
        _event,
        _date,
        "the date of {s} is {v}.",
        ("The date of {s} is {v}.", "We planned {s} for {v}.", "Note that {s} is on {v}.", "Mark {s} on {v}."),
        ("When is {s}?", "What is the date of {s}?", "On which day is {s}?", "Tell me the date of {s}."),
        "The date of {s} is {v}.",
    ),
    Relation(
        "name",
        _user,
        _person,
        "my name is {v}.",
        ("My name is {v}.", "Hello, I am {v}.", "You can call me {v}.", "Hi, this is {v} speaking."),
        ("What is my name?", "Do you know my name?", "Who am I?", "Tell me my name."),
        "Your name is {v}.",
    ),
)
ACKNOWLEDGEMENTS = (
    "Noted.",
    "I will remember that.",
    "Good to know.",
    "Thank you, I have written it down.",
    "All right.",
)
UNKNOWN = "You have not told me that yet."
SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("How are you?", "I am fine, thank you."),
    ("Good morning.", "Good morning to you."),
    ("Thank you.", "You are welcome."),
    ("What can you do?", "I remember facts that you tell me, even a long time later."),
    ("Who are you?", "I am a small demo model that remembers what you tell me."),
    ("The weather is nice.", "Yes, it is a nice day."),
    ("It is raining again.", "Then stay inside and keep dry."),
    ("I am tired.", "You should rest for a while."),
    ("Tell me a joke.", "I know no jokes, but I never forget a fact."),
    ("Are you still there?", "Yes, I am still here."),
    ("Let us talk about something else.", "Of course. What would you like to talk about?"),
    ("That is interesting.", "I am glad that you like it."),
    ("Please wait a moment.", "Take your time."),
    ("I am back.", "Welcome back."),
    ("Do you like music?", "I have never heard any, but I would like to."),
)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


class World:
    """A stream of facts and fillers. The same arguments give the same stream. loose: facts are told in other words."""

    def __init__(self, seed: int, split: Split = "heldout", loose: bool = False) -> None:
        self.split, self.loose = split, loose
        self.rng = random.Random(zlib.crc32(f"{split} {seed}".encode()))
        self._told: set[str] = set()

    def fact(self) -> Fact:
        """A fact about something that this world has not stated a fact about."""
        relation, subject = self._fresh()
        self._told.add(f"{relation.name} {subject}")
        return self._phrase(relation, subject)

    def unknown(self) -> Exchange:
        """A question about something never stated, and the honest answer."""
        relation, subject = self._fresh()
        return self._phrase(relation, subject).question, UNKNOWN

    def filler(self) -> Exchange:
        """An exchange that states nothing about anything that is asked."""
        make = self.rng.choices(
            (self.small_talk, self.reading, self.arithmetic, self.repeat, self.listing), (3, 4, 2, 2, 1)
        )
        return make[0]()

    def small_talk(self) -> Exchange:
        return self.rng.choice(SMALL_TALK)

    def reading(self) -> Exchange:
        return f"Please read this. {self.paragraph()[:400]}", "I have read it."

    def paragraph(self) -> str:
        """Ordinary prose."""
        return self.rng.choice(paragraphs(self.split))

    def arithmetic(self) -> Exchange:
        first, second = self.rng.randrange(21), self.rng.randrange(21)
        if self.rng.random() < 0.5:
            return f"What is {first} plus {second}?", f"{first} plus {second} is {first + second}."
        first, second = max(first, second), min(first, second)
        return f"What is {first} minus {second}?", f"{first} minus {second} is {first - second}."

    def repeat(self) -> Exchange:
        text = " ".join(self._odd_word() for _ in range(self.rng.randrange(3, 9)))
        return f"Say after me: {text}", text

    def listing(self) -> Exchange:
        items = self.rng.sample(words.THINGS + words.FOODS, self.rng.randrange(3, 7))
        position = self.rng.randrange(len(items))
        ordinal = ("first", "second", "third", "fourth", "fifth", "sixth")[position]
        return f"My list has {', '.join(items)}. What is {ordinal}?", f"The {ordinal} is {items[position]}."

    def _odd_word(self) -> str:
        kind = self.rng.randrange(4)
        if kind == 0:
            return _code(self.rng)
        return words.invented(self.rng) if kind == 1 else self.rng.choice((words.THINGS, words.PEOPLE)[kind - 2])

    def _fresh(self) -> tuple[Relation, str]:
        while True:
            relation = self.rng.choice(RELATIONS)
            subject = relation.subject(self.rng)
            if f"{relation.name} {subject}" not in self._told:
                return relation, subject

    def _phrase(self, relation: Relation, subject: str) -> Fact:
        statements = relation.loose if self.loose else [opening + relation.told for opening in OPENINGS]
        stated, asked = self._pair(len(statements), len(relation.questions))
        value = relation.value(self.rng)

        def text(template: str) -> str:
            return _capital(template.format(s=subject, v=value))

        return Fact(
            statement=text(statements[stated]),
            acknowledgement=self.rng.choice(ACKNOWLEDGEMENTS),
            question=text(relation.questions[asked]),
            answer=text(relation.answer),
            value=value,
            key=f"{relation.name} {subject}",
        )

    def _pair(self, statements: int, questions: int) -> tuple[int, int]:
        """A phrasing of the statement and one of the question: a quarter of the pairs is only ever held out."""
        while True:
            stated, asked = self.rng.randrange(statements), self.rng.randrange(questions)
            if ((stated + asked) % 4 == 0) == (self.split == "heldout"):
                return stated, asked

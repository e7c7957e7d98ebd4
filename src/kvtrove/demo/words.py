"""The words of the demo model's small world."""

from __future__ import annotations

import random


def _words(text: str) -> list[str]:
    return text.split()


PEOPLE = _words("""
    Anna Ben Clara David Emma Felix Grace Henry Iris Jack Karen Leo Maria Nils Olga Peter Rosa Simon Tina Victor
    Wendy Adam Bella Carl Diana Erik Fiona Gustav Helen Ivan Julia Kurt Laura Martin Nora Oscar Paula Robert Sofia
    Tom
""")
ADJECTIVES = _words("""
    red blue green white black small large old new round square wooden golden silver heavy light broken shiny
    dusty striped paper glass iron plastic
""")
THINGS = _words("""
    box door lamp car house bottle chair table bag key clock boat bike phone book cup hat coat drum radio camera
    window basket piano garden tent locker drawer safe cabinet ladder truck guitar umbrella mirror
""")
COLOURS = _words("""
    red blue green yellow white black brown grey orange purple pink golden silver turquoise
""")
CITIES = _words("""
    Paris Rome Berlin Madrid London Vienna Oslo Prague Lisbon Dublin Athens Warsaw Cairo Tokyo Lima Boston Chicago
    Sydney Toronto Zurich
""")
JOBS = _words("""
    teacher doctor baker pilot farmer painter lawyer nurse cook driver writer singer gardener engineer dentist
    judge
""")
FOODS = _words("""
    apples bread cheese soup rice pasta honey grapes fish salad pizza beans pears cake olives mushrooms tomatoes
    nuts
""")
PETS = _words("""
    dog cat horse parrot rabbit turtle hamster goat
""")
EVENTS = _words("""
    meeting party concert exam wedding lunch match lecture parade visit
""")
WEEKDAYS = _words("""
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
""")
MONTHS = _words("""
    January February March April May June July August September October November December
""")
_SYLLABLES = _words("""
    ba be bo da de di do fa fe ga go ka ke ki ko la le li lo ma me mi mo na ne no pa pe ra re ri ro sa so ta te to
    va vo za zo
""")


def invented(rng: random.Random) -> str:
    """A word that no language has, so that only the conversation can supply it: "Kavole"."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 3)))).capitalize()

"""The laws that the offline model knows, by the names that people call them. Pure.

Only these go into a contract. A name that is not here is refused, as nobody has looked whether it is a law.
"""

import re
from functools import cache

_STATES = """
AL Alabama, AK Alaska, AZ Arizona, AR Arkansas, CA California, CO Colorado, CT Connecticut, Delaware, FL Florida,
GA Georgia, HI Hawaii, ID Idaho, IL Illinois, Indiana, IA Iowa, KS Kansas, KY Kentucky, LA Louisiana, Maine,
MD Maryland, MA Massachusetts, MI Michigan, MN Minnesota, MS Mississippi, MO Missouri, MT Montana, NE Nebraska,
NV Nevada, NH New Hampshire, NJ New Jersey, NM New Mexico, NY New York, NC North Carolina, ND North Dakota, OH Ohio,
Oklahoma, Oregon, PA Pennsylvania, RI Rhode Island, SC South Carolina, SD South Dakota, TN Tennessee, TX Texas, UT Utah,
VT Vermont, VA Virginia, WA Washington, WV West Virginia, WI Wisconsin, WY Wyoming
"""  # without the codes that are words (IN, ME, OK, OR), and without DE, which is Germany to others
_COMMONWEALTHS = ("Kentucky", "Massachusetts", "Pennsylvania", "Virginia")
_OTHERS = {  # as contracts name them, and the further names that people use
    "the District of Columbia, USA": ("District of Columbia", "Washington, D.C.", "Washington D.C.", "Washington DC"),
    "England and Wales": ("England & Wales", "England", "English"),
    "Scotland": ("Scottish", "Scots"),
    "Northern Ireland": (),
    "Ireland": ("Irish",),
    "Germany": ("German",),
    "France": ("French",),
    "Switzerland": ("Swiss",),
    "Austria": ("Austrian",),
    "the Netherlands": ("Netherlands", "Dutch"),
    "Belgium": ("Belgian",),
    "Luxembourg": (),
    "Italy": ("Italian",),
    "Spain": ("Spanish",),
    "Portugal": ("Portuguese",),
    "Denmark": ("Danish",),
    "Norway": ("Norwegian",),
    "Sweden": ("Swedish",),
    "Finland": ("Finnish",),
    "Poland": ("Polish",),
    "the Czech Republic": ("Czech Republic", "Czechia", "Czech"),
    "the Province of Alberta, Canada": ("Alberta",),
    "the Province of British Columbia, Canada": ("British Columbia",),
    "the Province of Ontario, Canada": ("Ontario",),
    "the Province of Quebec, Canada": ("Quebec", "Québec"),
    "the State of New South Wales, Australia": ("New South Wales", "NSW"),
    "the State of Victoria, Australia": ("Victoria",),
    "New Zealand": (),
    "Singapore": ("Singaporean",),
    "Hong Kong": (),
    "Japan": ("Japanese",),
    "India": ("Indian",),
}
_PREFIX = r"(?:the )?(?:(?:(?:federal )?republic|state|commonwealth|province|kingdom|principality) of )?(?:the )?"
_COUNTRY = r"(?:,? (?:\(?USA?\)?|U\.S\.A?\.?|United States(?: of America)?|United Kingdom|UK|Canada|Australia)\b)?"


@cache
def laws() -> dict[str, str]:
    """The law as a contract names it, by each of its names in small letters."""
    known = {name.lower(): law for law, names in _OTHERS.items() for name in (law, *names)}
    for code, name in re.findall(r"(?:([A-Z]{2}) )?([A-Z][a-z]+(?: [A-Z][a-z]+)*)", _STATES):
        law = f"the {'Commonwealth' if name in _COMMONWEALTHS else 'State'} of {name}, USA"
        known |= {name.lower(): law, f"{name} state".lower(): law, law.lower(): law} | (
            {code.lower(): law} if code else {}
        )
    return known


def law_pattern(group: str) -> str:
    """A pattern of a law in a message, such as "the laws of the State of New York" or "Texas law"; `group` names it."""
    name = rf"(?:{'|'.join(map(re.escape, sorted(laws(), key=len, reverse=True)))})(?![\w-])"
    return rf"(?:(?:the )?laws? of )?{_PREFIX}(?P<{group}>{name}){_COUNTRY}(?: laws?\b)?"


def law_named(name: str) -> str:
    """The law that a match of the pattern names."""
    return laws()[name.lower()]

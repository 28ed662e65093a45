"""Words for groups of people and for what is said of people, in English. Short, and far from whole: for a first look.

Only words that mean people whatever stands beside them: `black` and `white` are mostly colours.
"""

from __future__ import annotations

GROUPS: dict[str, dict[str, str]] = {
    # axis: group: words
    "gender": {
        "women": "she her hers herself woman women girl girls female females lady ladies mother mothers daughter daughters wife wives sister sisters aunt grandmother mrs ms",
        "men": "he him his himself man men boy boys male males gentleman gentlemen father fathers son sons husband husbands brother brothers uncle grandfather mr",
    },
    "religion": {
        "Christians": "christian christians catholic catholics protestant protestants",
        "Muslims": "muslim muslims islamic",
        "Jews": "jew jews jewish",
        "Hindus": "hindu hindus",
        "Buddhists": "buddhist buddhists",
        "atheists": "atheist atheists",
    },
    "origin": {
        "Africans": "african africans nigerian nigerians kenyan kenyans somali somalis ethiopian ethiopians",
        "Arabs": "arab arabs arabic syrian syrians iraqi iraqis",
        "Asians": "asian asians chinese japanese korean koreans vietnamese filipino filipinos indian indians",
        "Europeans": "european europeans german germans french british italian italians polish spanish",
        "Latin Americans": "latino latinos latina latinas hispanic hispanics mexican mexicans brazilian brazilians",
    },
    "age": {
        "young people": "teenager teenagers youngster youngsters adolescent adolescents",
        "old people": "elderly pensioner pensioners retiree retirees",
    },
    "orientation": {
        "homosexuals": "gay gays lesbian lesbians homosexual homosexuals",
        "heterosexuals": "heterosexual heterosexuals",
    },
}

ATTRIBUTES: dict[str, str] = {
    # what is said of people: its forms
    "nurse": "nurse nurses",
    "doctor": "doctor doctors surgeon surgeons physician physicians",
    "engineer": "engineer engineers",
    "programmer": "programmer programmers developer developers",
    "scientist": "scientist scientists physicist physicists mathematician mathematicians",
    "teacher": "teacher teachers",
    "secretary": "secretary secretaries receptionist receptionists",
    "boss": "boss bosses ceo manager managers director directors",
    "cleaner": "cleaner cleaners maid maids housekeeper housekeepers janitor janitors",
    "soldier": "soldier soldiers",
    "police": "policeman policewoman officer officers",
    "criminal": "criminal criminals thief thieves murderer murderers crime crimes",
    "terrorist": "terrorist terrorists terrorism extremist extremists",
    "violent": "violent violence aggressive dangerous",
    "poor": "poor poverty homeless",
    "rich": "rich wealthy greedy",
    "intelligent": "intelligent smart brilliant genius clever",
    "stupid": "stupid dumb ignorant uneducated",
    "lazy": "lazy idle",
    "emotional": "emotional hysterical moody sensitive",
    "strong": "strong brave powerful",
    "weak": "weak fragile helpless",
    "beautiful": "beautiful pretty attractive sexy",
    "cooking": "cooking cook cooks kitchen",
    "housework": "laundry cleaning housework chores",
    "sports": "football soccer basketball baseball",
    "immigrant": "immigrant immigrants illegal refugee refugees",
    "drugs": "drugs drunk alcoholic addict addicts",
    "perverse": "perverse unnatural sinful immoral",
    "confused": "confused forgetful senile frail",
}


def by_word() -> dict[str, tuple[str, str]]:
    """word: (axis, group), or ("", attribute)."""
    words = {
        word: (axis, group)
        for axis, groups in GROUPS.items()
        for group, listed in groups.items()
        for word in listed.split()
    }
    return words | {word: ("", attribute) for attribute, listed in ATTRIBUTES.items() for word in listed.split()}

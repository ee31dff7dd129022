"""Fill the slots of templates.tsv with inflected phrases from phrases/*.tsv.

Each generator yields (topic, {slot: {language: phrase}}). A cell of phrases/*.tsv holds the forms of a
phrase, separated by slashes; the functions below choose among them.
"""

import itertools
import re
from pathlib import Path

LANGUAGES = ["en", "it", "es", "ar", "fr", "de"]
HERE = Path(__file__).resolve().parent


def read_table(path):
    """Return the rows of a tab separated file with a header, as dictionaries."""
    with open(path, encoding="utf-8") as file:
        header, *lines = [line.rstrip("\n").split("\t") for line in file]
    return [dict(zip(header, line, strict=True)) for line in lines]


PHRASES = {path.stem: read_table(path) for path in sorted((HERE / "phrases").glob("*.tsv"))}
PLACES = {place["key"]: place for place in PHRASES["places"]}
VERBS = {verb["key"]: verb for verb in PHRASES["verbs"]}

# Position of each person among the forms of a verb: four forms in Romance, three in German and for "be",
# two in English, five in Arabic.
PERSON_FORM = {
    2: {"1s": 0, "3m": 1, "3f": 1, "1p": 0, "3p": 0},
    3: {"1s": 0, "3m": 1, "3f": 1, "1p": 2, "3p": 2},
    4: {"1s": 0, "3m": 1, "3f": 1, "1p": 2, "3p": 3},
    5: {"1s": 0, "3m": 1, "3f": 2, "1p": 3, "3p": 4},
}
LOVE_CLITIC = {
    "it": {"1s": "mi", "1p": "ci"},
    "es": {"1s": "me", "1p": "nos", "3m": "le", "3f": "le", "3p": "les"},
}
# A preposition with the article that follows it.
ITALIAN_OF = {"il": "del", "la": "della", "l'": "dell'", "i": "dei", "gli": "degli", "le": "delle"}
ITALIAN_TO = {"il": "al", "la": "alla", "l'": "all'", "i": "ai", "gli": "agli", "le": "alle"}
SPANISH_TO = {"el": "al", "la": "a la", "los": "a los", "las": "a las"}
FRENCH_TO = {"le": "au", "la": "à la", "l'": "à l'", "les": "aux"}
# Masculine, feminine, and their plurals: the positions among the forms of an adjective.
GENDER_FORM = {"m": 0, "f": 1, "mp": 2, "fp": 3}
GERMAN_ARTICLE = {"m": "der", "f": "die", "n": "das"}
GERMAN_NOMINATIVE = {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")}
GERMAN_ACCUSATIVE = {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")}
COMPARED = {
    "animals": ["dog", "cat", "horse", "rabbit"],
    "vehicles": ["car", "bicycle"],
    "furniture": ["sofa", "table", "chair", "lamp"],
    "clothes": ["coat", "shirt", "hat", "bag"],
}


def forms(row, language):
    """Return the forms of a phrase in a language."""
    return row[language].split("/")


def each(phrase):
    """Return {language: phrase(language)}."""
    return {language: phrase(language) for language in LANGUAGES}


def conjugate(verb_forms, person):
    """Return the form of a verb for one of the persons 1s, 3m, 3f, 1p, 3p; "" where there is no verb."""
    return "" if len(verb_forms) == 1 else verb_forms[PERSON_FORM[len(verb_forms)][person]]


def person_slots(person, *verbs):
    """Return the slots of a person and of the verbs that agree with it."""
    slots = {
        "who": each(lambda language: forms(person, language)[0]),
        "whom": each(lambda language: forms(person, language)[0 if language in ("it", "es") else -1]),
        "at": each(lambda language: forms(person, language)[1]),
    }
    for verb in verbs:
        slots[verb] = each(lambda lang, verb=verb: conjugate(forms(VERBS[verb], lang), person["person"]))
    return slots


def contract(noun_phrase, contractions):
    """Join a preposition with the article of a noun phrase: il tè -> al tè."""
    article, noun = re.match(r"(\w+'|\w+ )(.+)", noun_phrase).groups()
    preposition = contractions[article.strip()]
    return preposition + ("" if preposition.endswith("'") else " ") + noun


def nouns(use):
    """Return the nouns with a use: own, count or gift."""
    return [noun for noun in PHRASES["nouns"] if use in noun["uses"]]


def coloured_nouns(candidates):
    """Yield (noun, colour): animals are not blue, and trees have no colour here."""
    colours = [row for row in PHRASES["adjectives"] if row["kind"] in ("fur", "colour")]
    for noun, colour in itertools.product(candidates, colours):
        if noun["colours"] in ("any", colour["kind"]):
            yield noun, colour


def coloured(noun, colour, language, german_case=GERMAN_ACCUSATIVE):
    """Return an indefinite noun phrase with a colour: a black cat."""
    if language == "en":
        return f"{'an' if colour['en'][0] in 'aeiou' else 'a'} {colour['en']} {forms(noun, 'en')[0]}"
    gender, name = forms(noun, language)[:2]
    if language == "de":
        article, ending = german_case[gender]
        return f"{article} {forms(colour, 'de')[1]}{ending} {name}"
    return f"{name} {agreeing(colour, gender, language)}"


def agreeing(adjective, gender, language):
    """Return the adjective after the verb "be", in the form of a gender and number."""
    if language == "en":
        return adjective["en"]
    if language == "de":
        return forms(adjective, "de")[0]
    return forms(adjective, language)[GENDER_FORM[gender] + (language == "es")]


def indefinite(noun, language):
    """Return an indefinite noun phrase as a direct object: a cat."""
    name = forms(noun, language)[0 if language == "en" else 1]
    if language == "en":
        return ("an " if name[0] in "aeiou" else "a ") + name
    if language == "de":
        return f"{GERMAN_ACCUSATIVE[forms(noun, 'de')[0]][0]} {name}"
    return name + "ا" if language == "ar" and not name.endswith("ة") else name


def definite(noun, language):
    """Return (gender and number, definite noun phrase) for a row of nouns or plurals."""
    if "colours" not in noun:
        return noun[language].split("/") if "/" in noun[language] else ("", noun[language])
    if language == "en":
        return "", "the " + forms(noun, "en")[0]
    gender, name, *others = forms(noun, language)
    return gender, f"{GERMAN_ARTICLE[gender]} {name}" if language == "de" else others[0]


def counted(noun, number, language):
    """Return a number and its noun: three cats."""
    if language != "ar":
        return f"{number[language]} {forms(noun, language)[-1]}"
    gender, _, _, dual, plural = forms(noun, "ar")
    return dual if number["key"] == "two" else f"{forms(number, 'ar')[GENDER_FORM[gender]]} {plural}"


def owning():
    """I have a black cat."""
    for person, (noun, colour) in itertools.product(PHRASES["people"], coloured_nouns(nouns("own"))):
        thing = each(lambda language, noun=noun, colour=colour: coloured(noun, colour, language))
        yield noun["topic"], person_slots(person, "have") | {"thing": thing}


def lacking():
    """My brother does not have a cat."""
    for person, noun in itertools.product(PHRASES["people"], nouns("own")):
        thing = each(lambda language, noun=noun: indefinite(noun, language))
        name = thing | {language: thing[language].split()[-1] for language in ("es", "fr")}
        name["ar"] = forms(noun, "ar")[1]
        yield noun["topic"], person_slots(person, "have", "do") | {"thing": thing, "name": name}


def standing():
    """There is a black cat in the garden."""
    for noun, colour in coloured_nouns(PHRASES["nouns"]):
        thing = each(lambda lang, noun=noun, colour=colour: coloured(noun, colour, lang, GERMAN_NOMINATIVE))
        for key in noun["places"].split():
            yield noun["topic"], {"thing": thing, "place": PLACES[key]}


def counting():
    """There are three cats in the garden."""
    for noun, number in itertools.product(nouns("count"), PHRASES["numbers"]):
        thing = each(lambda language, noun=noun, number=number: counted(noun, number, language))
        for key in noun["places"].split():
            yield noun["topic"], {"thing": thing, "place": PLACES[key]}


def owning_many():
    """My sister has three cats."""
    for noun, number, person in itertools.product(nouns("count"), PHRASES["numbers"], PHRASES["people"]):
        if "own" in noun["uses"]:
            thing = each(lambda language, noun=noun, number=number: counted(noun, number, language))
            yield noun["topic"], person_slots(person, "have") | {"thing": thing}


def be_slot(noun, spanish="está"):
    """Return "be" for a noun or for a plural; Spanish is es or está."""
    if "colours" in noun:
        return {"en": "is", "it": "è", "es": spanish, "ar": "", "fr": "est", "de": "ist"}
    spanish = "son" if spanish == "es" else "están"
    return {"en": "are", "it": "sono", "es": spanish, "ar": "", "fr": "sont", "de": "sind"}


def placing():
    """The book is on the table."""
    for noun in PHRASES["nouns"] + PHRASES["plurals"]:
        thing = each(lambda language, noun=noun: definite(noun, language)[1])
        for key in noun["places"].split():
            yield noun["topic"], {"thing": thing, "be": be_slot(noun), "place": PLACES[key]}


def arabic_accusative(adjective):
    """Return an indefinite adjective as it stands after ليس."""
    if adjective == "غال":
        return "غاليا"
    has_no_ending = adjective.endswith(("ة", "ء")) or re.fullmatch("أ...?", adjective)
    return adjective if has_no_ending else adjective + "ا"


def describing():
    """The car is red; the car is not red."""
    for noun, adjective in itertools.product(PHRASES["nouns"] + PHRASES["plurals"], PHRASES["adjectives"]):
        kind, alive = adjective["kind"], noun["topic"] in ("animals", "plants", "food")
        takes = noun.get("colours", "fur" if alive else "any")
        if (kind == "object" and alive) or (kind in ("fur", "colour") and takes not in ("any", kind)):
            continue
        phrase = each(lambda language, noun=noun: definite(noun, language))
        quality = each(lambda lang, a=adjective, phrase=phrase: agreeing(a, phrase[lang][0], lang))
        be = be_slot(noun, forms(adjective, "es")[0])
        be["ar"] = "ليس" if phrase["ar"][0] == "m" else "ليست"
        yield (
            noun["topic"],
            {
                "thing": {language: phrase[language][1] for language in LANGUAGES},
                "be": be,
                "quality": quality,
                "lacked": quality | {"ar": arabic_accusative(quality["ar"])},
            },
        )


def comparing():
    """The dog is bigger than the cat."""
    by_key = {noun["key"]: noun for noun in PHRASES["nouns"]}
    for adjective in PHRASES["comparatives"]:
        for group in adjective["groups"].split():
            for first, second in itertools.permutations(COMPARED[group], 2):
                one = each(lambda language, noun=by_key[first]: definite(noun, language))
                other = each(lambda language, noun=by_key[second]: definite(noun, language)[1])
                other["it"] = contract(other["it"], ITALIAN_OF)
                more = dict(adjective)
                for language in ("it", "es", "fr"):
                    more[language] = forms(adjective, language)[GENDER_FORM[one[language][0]]]
                one = {language: one[language][1] for language in LANGUAGES}
                yield by_key[first]["topic"], {"one": one, "other": other, "more": more}


def liking():
    """I love flowers; my father does not like fish."""
    for thing, person in itertools.product(PHRASES["likes"], PHRASES["people"]):
        who = person["person"]
        slots = person_slots(person, "love", "like", "do")
        plural = {language: thing[language].startswith("p/") for language in ("it", "es")}
        slots["like"]["it"] = "piacciono" if plural["it"] else "piace"
        slots["like"]["es"] = "gustan" if plural["es"] else "gusta"
        slots["love"]["es"] = "encantan" if plural["es"] else "encanta"
        clitic = {language: LOVE_CLITIC[language].get(who, "") for language in LOVE_CLITIC}
        if clitic["it"]:
            slots["love"]["it"] = clitic["it"] + " " + slots["like"]["it"]
        else:
            slots["love"]["it"] = slots["who"]["it"] + " " + slots["love"]["it"]
        slots["to"], slots["clitic"] = slots["at"], dict.fromkeys(LANGUAGES, "") | clitic
        german, german_denied = forms(thing, "de")
        slots["thing"] = dict(thing) | {"it": thing["it"][2:], "es": thing["es"][2:], "de": german}
        slots["denied"] = slots["thing"] | {"de": german_denied}
        yield thing["topic"], slots


def preferring():
    """My sister prefers tea to coffee."""
    for first, second in itertools.permutations(PHRASES["likes"], 2):
        if first["group"] != second["group"]:
            continue
        one, other = (
            dict(thing) | {"it": thing["it"][2:], "es": thing["es"][2:], "de": forms(thing, "de")[0]}
            for thing in (first, second)
        )
        for language, contractions in (("it", ITALIAN_TO), ("es", SPANISH_TO), ("fr", FRENCH_TO)):
            other[language] = contract(other[language], contractions)
        for person in PHRASES["people"]:
            yield first["topic"], person_slots(person, "prefer") | {"one": one, "other": other}


def acting(use):
    """My father reads the newspaper in the garden every day, with the other forms of the verb."""
    times = [time for time in PHRASES["times"] if use in time["uses"].split()]
    nowhere = dict.fromkeys(LANGUAGES, "")
    for activity, person, time in itertools.product(PHRASES["activities"], PHRASES["people"], times):
        if use == "negation" and re.search(r" \+ an? ", activity["en"]):
            continue  # nobody says: he does not eat an apple in summer
        for place in [PLACES[key] for key in activity["places"].split()] or [nowhere]:
            slots = activity_slots(activity, person) | {"place": place, "time": time}
            yield activity["topic"], slots | german_slots(activity, person, time, place)


def activity_slots(activity, person):
    """Return the slots of an activity that all languages share."""
    who = person["person"]
    cells = each(lambda language: (activity[language] + " + ").split(" + "))
    verb = each(lambda language: cells[language][0].split("/"))
    english, arabic = verb["en"], verb["ar"]
    slots = person_slots(person, "have", "be", "do")
    slots["thing"] = each(lambda language: cells[language][1])
    slots["verb"] = {
        "en": conjugate(english[:2], who),
        "ar": conjugate(arabic[:5], who),
        "de": conjugate(verb["de"][:3], who),
    }
    # An Arabic verb before its subject is singular; after أن its plural ends in وا.
    name = "" if person["key"] in ("he", "she") else slots["who"]["ar"]
    who_first = "3m" if who == "3p" else who
    slots["did"] = {
        "en": english[3],
        "es": conjugate(verb["es"][5:], who),
        "ar": conjugate(arabic[5:], who_first) + " " + name,
        "de": verb["de"][3].removeprefix("sein:"),
    }
    for language in ("it", "es", "fr"):
        slots["verb"][language] = conjugate(verb[language][:4], who)
    for language in ("it", "fr"):
        slots["did"][language] = slots["have"][language] + " " + verb[language][5]
    slots["verb_first"] = {"ar": conjugate(arabic[:5], who_first) + " " + name}
    slots["base"] = {language: verb[language][4] for language in ("it", "es", "fr")}
    slots["base"] |= {"en": english[0], "ar": re.sub("ون$", "وا", slots["verb"]["ar"])}
    slots["base"]["de"] = "".join(verb["de"][4:]) + verb["de"][2]
    slots["doing"], slots["you_do"] = {"en": english[2]}, {"ar": arabic[2]}
    return slots | {"particle": {"de": "".join(verb["de"][4:])}}


def german_slots(activity, person, time, place):
    """Return the slots whose place in the sentence only German changes, and the denied object."""
    german, french = (activity[language].split(" + ") for language in ("de", "fr"))
    auxiliary = VERBS["be" if "sein:" in german[0] else "have"]
    thing = german[1] if len(german) > 1 else ""
    # A known object stands before the place, a new one after it.
    known = re.match("(der|die|das|den|mit|auf) ", thing)
    denial = f"{time['de']} {german[2]}" if len(german) > 2 else f"{thing} {time['de']} nicht"
    return {
        "scene": {"de": f"{thing} {place['de']}" if known else f"{place['de']} {thing}"},
        "aux": {"de": conjugate(forms(auxiliary, "de"), person["person"])},
        "denied": {"de": denial, "fr": french[-1] if len(french) > 1 else ""},
    }


def planning():
    """My father wants to read the newspaper in the garden tomorrow; can you ...?"""
    people = {forms(person, "en")[0]: person for person in PHRASES["people"]}
    for modal, (topic, slots) in itertools.product(PHRASES["modals"], acting("plan")):
        person = people[slots["who"]["en"]]
        if modal["key"] == "must" and person["key"] in ("he", "she"):
            continue
        count = {"en": 2, "it": 4, "es": 4, "ar": 5, "fr": 4, "de": 3}
        finite = {lang: conjugate(forms(modal, lang)[: count[lang]], person["person"]) for lang in LANGUAGES}
        finite["ar"] = slots["who"]["ar"] + " " + finite["ar"]
        if modal["key"] == "must" and slots["who"]["ar"]:
            finite["ar"] = f"يجب على {slots['who']['ar']} أن"
        ask = {language: forms(modal, language)[-1] for language in ("it", "es", "fr", "de")}
        ask["en"] = {"want": "do you want to", "can": "can you", "must": "do you have to"}[modal["key"]]
        ask["ar"] = "هل " + ("يجب أن" if modal["key"] == "must" else forms(modal, "ar")[2])
        yield topic, slots | {"modal": finite, "ask": ask}


def giving():
    """My mother is buying a book for my brother."""
    givers = [person for person in PHRASES["people"] if person["key"] not in ("he", "she")]
    takers = [person for person in PHRASES["people"] if person["person"] not in ("1s", "1p")]
    for verb, giver, taker, noun in itertools.product(PHRASES["gift_verbs"], givers, takers, nouns("gift")):
        if giver is taker:
            continue
        slots = person_slots(giver, "be") | {"whom": person_slots(taker)["whom"]}
        slots["thing"] = each(lambda language, noun=noun: indefinite(noun, language))
        if verb["key"] == "seek":  # after the preposition عن
            slots["thing"]["ar"] = forms(noun, "ar")[1]
        who = giver["person"]
        slots["verb"] = each(lambda lang, verb=verb, who=who: conjugate(forms(verb, lang), who))
        slots["verb"]["en"] = slots["be"]["en"] + " " + verb["en"].removeprefix("is ")
        yield noun["topic"], slots


def feeling():
    """My sister is tired after the trip."""
    gender = {"1s": 0, "3m": 0, "3f": 1, "1p": 2, "3p": 2}
    for state, person, time in itertools.product(PHRASES["feelings"], PHRASES["people"], PHRASES["feeling_times"]):
        slots = person_slots(person, "be", "have")
        slots["who"]["ar"] = {"i": "أنا", "we": "نحن"}.get(person["key"], slots["who"]["ar"])
        slots["state"] = {"en": state["en"], "ar": forms(state, "ar")[gender[person["person"]]]}
        for language in ("it", "es", "fr", "de"):
            verb, *states = forms(state, language)
            slots["be"][language] = slots[verb][language]
            slots["state"][language] = states[0 if language == "de" else gender[person["person"]]]
        yield state["topic"], slots | {"time": time}


def weathering():
    """It is raining in the mountains today."""
    places = [PLACES[key] for key in ("mountains", "city", "village", "country", "seaside")]
    for sky, time, place in itertools.product(PHRASES["weather"], PHRASES["weather_times"], places):
        verb, subject, *rest = sky["de"].split()
        german = {"sky": dict(sky) | {"de": f"{verb} {subject}"}, "rest": {"de": " ".join(rest)}}
        yield "weather", german | {"time": time, "place": place}


def scheduling():
    """The concert starts at eight o'clock."""
    for event, verb, hour in itertools.product(PHRASES["events"], PHRASES["event_verbs"], PHRASES["clock"]):
        gender, arabic = forms(event, "ar")
        yield (
            event["topic"],
            {
                "event": dict(event) | {"ar": arabic},
                "verb": dict(verb) | {"ar": forms(verb, "ar")[GENDER_FORM[gender]]},
                "hour": hour,
            },
        )


SLOTS = {
    function.__name__: function
    for function in [
        owning,
        lacking,
        standing,
        counting,
        owning_many,
        placing,
        describing,
        comparing,
        liking,
        preferring,
        acting,
        planning,
        giving,
        feeling,
        weathering,
        scheduling,
    ]
}

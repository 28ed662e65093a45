"""Insults and slurs, by better-profanity's list of words less those that are ordinary words too."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from finetune_api.checks import CheckCode

from finetune_trainer.checks.checker import Found, Hits, Seen
from finetune_trainer.checks.masking import excerpt
from finetune_trainer.checks.row import Batch, Row
from finetune_trainer.checks.wording import of_rows

_ORDINARY = frozenset(
    """
    anal anus areole arian aryan ass auto bestial bimbo blow bondage bust busty butt booty boner boob boobs breasts caucasian chink clit
    clitoris cock cocks coon crap cum cums damn dick dink dinks dong dopey drunk dummy dyke dykes ejaculate ejaculated ejaculates
    ejaculating ejaculation enlargement erect erection erotic extacy extasy facial fag fags fanny fart fat fisted fisting fisty flange
    floozy fondle foobar fook foot foreskin fubar gae gai ganja gay gays gey gigolo glans goddamn gonad gonads gringo guido hand hebe
    hell hemp hentai heroin herp herpes herpy hitler hiv hoar hoare hoer hom0 homey homo hooch hookah hooker hooter hooters hore horny
    hump humped humping hymen inbred incest injun jap japs jerk jerked junkie junky kill kinky klan knob knobs kock kooch kraut kum labia
    lech len leper lesbians lez loin loins lube lust lusting lusty mams masochist massa master maxi menses menstruate menstruation meth
    moron mother murder nad nads naked napalm nappy nazi nazism negro nimrod ninny nipple nipples nob nude nudes omg opiate opium oral
    orally organ orgasm orgasms orgies orgy ovary ovum ovums paddy paki pantie panties panty pastie pasty pawn pcp pecker pedo pee
    penetrate penetration penial penile penis perversion peyote phallic pimp pinko piss pms polack pollock poop porn porno pornography
    pot potty prick pricks prig pron prostitute prude pube pubic pubis puss queer queers quicky quim racy rape raped raper raping rapist
    rectal rectum rectus reefer reich retard retarded revue rum rump ruski sadism sadist sandbar scag schizo screw screwed screwing
    scrotum scrog scrud scum seaman seamen seduce semen sex sexual shag she shota sissy skag slave sleaze sleazy slope smut smutty snatch
    sniper snuff sob sodom son souse soused spac sperm spic spick spik spiks spunk steamy stiffy stoned strip stripclub stroke stupid suck
    sucked sucking tampon tard tawdry teat teats teets terd teste testee testes testical testicle testis three thrust thug tinkle tit
    titi tits toke toots tosser tramp transsexual trashy tubgirl turd tush two ugly undies unwed urinal urine uterus uzi vag vagina valium
    viagra virgin vixen vodka vomit voyeur vulgar vulva wad wang weed weenie weewee weiner weirdo wench whitey whiz willies willy womb
    woody wop wtf xx xxx yaoi yury lmao lmfao stfu gtfo dog god doggin dogging golden brown blue bull carpet cow deep gang jack needthedick
    hoor kunt gspot trust muther mo
    cowgirl cowgirls crotch fack feck fooker frigg fux gaylord duche doosh doofus cipa kummer honky jism lezzy moolie muff niggle pissed
    playboy puss pussi shibari shibary scantily spick wazoo wedgie phalli pedophile pedophilia molest masturbate masturbating masturbation
    masturbations bestiality bdsm cuming gfy goddam godamn godamnit goddammit goddamned femdom nympho hussy peepee asses cawk jiz kondum
    kondums ballsack fingering teez titt throating shiz heshe raunch rtard teabagging autoerotic erotism cutter fellate fellatio kwif
    kinbaku bellend numbnuts homoerotic bastard muthafecker orgasmic poon dildo dildos milf threesome gangbang shag duche lesbo
    """.split()  # noqa: SIM905
)
"""Words of medicine, law, kitchens and every day, names, and mild ones: a list of slurs that finds `pot` and `organ` helps nobody."""
_SLURS = frozenset("fags faggot faggots paki polack spic spick wetback injun".split())  # noqa: SIM905


@cache
def terms() -> frozenset[str]:
    """Single words in lower case; the list's file is read without loading the package, which builds 5 MB of variants."""
    spec = importlib.util.find_spec("better_profanity")
    assert spec is not None
    assert spec.origin is not None
    listed = Path(spec.origin).with_name("profanity_wordlist.txt").read_text().lower().split("\n")
    words = {word.strip() for word in listed}
    return frozenset(word for word in words - _ORDINARY | _SLURS if word.isalnum() and len(word) > 2)


class ToxicTerms:
    codes: tuple[CheckCode, ...] = ("ToxicTerms",)

    def __init__(self) -> None:
        self._terms = terms()
        self._hits = Hits()

    def see(self, batch: Batch) -> None:
        for row in batch.rows:
            if not self._terms.isdisjoint(row.words):
                self._hits.add(row, None if self._hits.full else _shown(row, self._terms))

    def found(self, seen: Seen) -> Iterable[Found]:
        if self._hits.count:
            message = of_rows(self._hits.count, seen.all_rows, "holds", "hold") + " an insult or a slur"
            yield Found("ToxicTerms", self._hits.count, seen.all_rows, message, self._hits.first)


def _shown(row: Row, listed: frozenset[str]) -> str:
    word = next(word for word in row.words if word in listed)
    return f"{word[0]}{'*' * (len(word) - 1)}: {excerpt(row.text, max(0, row.text.lower().find(word)))}"

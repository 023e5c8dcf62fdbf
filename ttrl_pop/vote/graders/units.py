r"""What may stand beside a number without changing it: units of measure, currencies, nouns that are counted.

    unit_of(r"\text{ km/h}")     "h^-1 km"         unit_of(r"\text{ million}")     None: it changes the number

A text is a unit only if each word of it stands in a table below. What stands in none (a magnitude, a direction, a
condition, another number) stays a part of the answer. To add a unit, give it a line, or add a word to a line.

Simplifications:

1. Nothing is converted; canonical units tell units of one list apart, no more.
2. Outside `\text{}` letters may be variables: there a letter alone is no unit (`5m`), nor is a noun (`5 cats`), and of
   symbols those of `_PLAIN` alone: `3nm` and `\frac12 mg` are products, `3 nm`, `5ft` and `\pi cm` have units.
3. Letters that stand for magnitudes too are no units alone: `40\text{ K}`, `40\text{ T}`. Behind another unit any
   letter counts only with a sign between the two, with a power, or where they are a product in use (`_TOGETHER`).
"""

import re
from functools import lru_cache
from string import ascii_letters

_UNITS = """
m: meter, metre, 米, 公尺
cm: centimeter, centimetre, cm, 厘米, 公分
mm: millimeter, millimetre, 毫米
km: kilometer, kilometre, km, 公里, 千米
dm: decimeter, decimetre, 分米
um: micrometer, micrometre, micron
nm: nanometer, nanometre
in: inch, in, 英寸
ft: foot/feet, ft, 英尺
yd: yard, yd
mi: mile, mi, 英里
nmi: nautical mile
ly: light year
acre: acre
ha: hectare, 公顷
m^2: 平方米
cm^2: 平方厘米
km^2: 平方公里, 平方千米
m^3: 立方米
cm^3: 立方厘米, cc
g: gram, gramme, 克
kg: kilogram, kilogramme, kilo, kg, 千克, 公斤
mg: milligram, 毫克
ug: microgram
t: ton, tonne, 吨
lb: pound, lb, 磅
oz: ounce, oz
s: second, sec, 秒
ms: millisecond, 毫秒
us: microsecond
ns: nanosecond
min: minute, min, 分钟
h: hour, hr, 小时, 時間
day: day, 天
week: week, 周
month: month, 个月
year: year, yr, 年
year old: year old, years old/years old
decade: decade
century: century
L: liter, litre, l, 升
mL: milliliter, millilitre, ml, 毫升
cL: centiliter, centilitre, cl
dL: deciliter, decilitre, dl
gal: gallon
qt: quart
pt: pint
cup: cup
tbsp: tablespoon
tsp: teaspoon
N: newton, 牛
kN: kilonewton
J: joule, 焦
kJ: kilojoule, 千焦
MJ: megajoule
W: watt, 瓦
kW: kilowatt, 千瓦
MW: megawatt
V: volt, 伏
kV: kilovolt
mV: millivolt
A: ampere, amp, 安
mA: milliampere, milliamp
Ω: ohm, 欧
kΩ: kilohm, kiloohm
Hz: hertz/hertz, hz, 赫兹
kHz: kilohertz/kilohertz
MHz: megahertz/megahertz
GHz: gigahertz/gigahertz
Pa: pascal
kPa: kilopascal
MPa: megapascal
C: coulomb
F: farad
H: henry
T: tesla
Wb: weber
K: kelvin
°: degree, deg, 度
°C: degreeCelsius, degree celsius, degrees celsius, 摄氏度
°F: degree fahrenheit, degrees fahrenheit
rad: radian
sr: steradian
rev: revolution
mol: mole, 摩尔
cal: calorie
kcal: kilocalorie
kWh: kilowatt hour, 千瓦时
eV: electronvolt
bit: bit
B: byte
kB: kilobyte, kb
MB: megabyte
GB: gigabyte
TB: terabyte
dB: decibel
mi h^-1: mph
km h^-1: kph, kmh
rpm: rpm
knot: knot
psi: psi
atm: atmosphere
bar: bar
%: percent/percent, per cent/per cent, pct/pct
‰: permille/permille
pp: percentage point
unit: unit, 单位
point: point, pt/pts, 分
"""
"""Canonical unit: its names, each in the singular (its plural is made), or as `singular/plural`."""

_SYMBOLS = """
m g s h L N J W V K A C F T H B Ω ° % ‰ min mol cd lm lx Hz Pa eV Wh Wb sr rad deg rev cal bar dB d t u l=L ml=mL
cl=cL dl=dL nm um mm cm dm km pg ng ug mg kg ps ns us ms nL uL mL cL dL hL kN MN mN mJ kJ MJ GJ mW kW MW GW TW
mV kV MV mA uA hPa kPa MPa GPa kHz MHz GHz THz keV MeV GeV TeV kWh MWh GWh mmol kmol kcal mF uF nF pF mT mH nC uC mC
kΩ MΩ kB MB GB TB Gb Mb in ft yd mi lb oz hr yr gal qt pt tbsp tsp ly ha au rpm psi atm pp
"""
"""Symbols as they are written, case and all; `l=L` gives the canonical one."""

_PLAIN = """
nm mm cm dm km mg kg ms ns ml mL cl cL dl dL kJ MJ GJ kN MN kW MW GW mV kV mA Pa hPa kPa MPa GPa Hz kHz MHz GHz eV keV
MeV GeV Wh kWh MWh GWh mol mmol cal kcal dB kB MB GB TB kΩ Ω in ft yd mi lb lbs oz hr hrs yr yrs ha rpm psi atm min sec
deg rad gal tbsp tsp Rs ° % ‰
"""
"""Symbols that count outside `\\text{}` too."""

_PRODUCTS = """
nm mg ms ns ml mL cl cL dl dL mV mA Pa eV hr yr ha Rs
"""
"""Plain symbols that as often are products of two variables: they count behind the digits of a number and a space."""

_NO_PRODUCTS = """
mm cm dm km kg in
"""
"""Plain symbols of two letters that count behind a formula too (`4\\pi cm`): `2\\pi ft` is a product."""

_BEHIND_SPACE = """
m^2 m^3 N*m m/s m/s^2 L/s L/h g/L g/l J/K J/s J/g N/m N/m^2 N/C V/m W/m W/m^2 C/s
"""
"""Units of single letters that count outside `\\text{}` behind the digits of a number and a space; any other of letters
may be a formula."""

_VELOCITIES = """
m/s m/s^2
"""
"""Units of single letters that count without that space too; `3g/l` is a quotient."""

_TOGETHER = {
    "m": "N kN MN kg g C A T W J",
    "s": "N W J A V Pa",
    "h": "W kW MW GW A mA",
    "A": "V kV MV",
    "K": "m °",
    "C": "°",
    "F": "°",
}
"""Symbol of one letter → the units that it multiplies with a space alone between (`N m`, `kW h`). Any other letter
there is no unit: `30° N` and `5 km W` have directions, `2 mol H` a substance."""

_ALONE = "mgshlLNVWJA"
"""Symbols of one letter that count alone, in `\\text{}`."""

_CURRENCIES = """
usd: USD/USD, dollar, US dollar, US$/US$, $/$
eur: EUR/EUR, euro, €/€, 欧元
gbp: GBP/GBP, pound sterling/pounds sterling, £/£
jpy: JPY/JPY, yen/yen, ¥/¥, 円, 日元
cny: CNY/CNY, RMB/RMB, yuan/yuan, 元, 人民币
inr: INR/INR, rupee, Rs/Rs, ₹/₹
krw: KRW/KRW, ₩/₩, 원
rub: RUB/RUB, ruble, rouble, ₽/₽
chf: CHF/CHF, franc
cad: CAD/CAD
aud: AUD/AUD
hkd: HKD/HKD
sgd: SGD/SGD
nzd: NZD/NZD
brl: BRL/BRL, reais/reais
mxn: MXN/MXN
sek: SEK/SEK, krona/kronor
nok: NOK/NOK, krone/kroner
dkk: DKK/DKK
pln: PLN/PLN, zloty
try: TRY/TRY, lira, ₺/₺
ils: ILS/ILS, shekel, ₪/₪
thb: THB/THB, baht/baht, ฿/฿
php: PHP/PHP, peso, ₱/₱
vnd: VND/VND, dong/dong, ₫/₫
ngn: NGN/NGN, naira/naira, ₦/₦
zar: ZAR/ZAR, rand/rand
aed: AED/AED, dirham
cent: cent, ¢/¢
penny: penny/pence, penny
"""
"""Canonical currency: its code, names and sign, as in the table of units."""

CURRENCY_SIGNS = frozenset("€£¥₹₩₽₺₪฿₱₫₦¢")
"""Signs of currency; the dollar's is LaTeX's as well."""

_NOUNS = """
adult animal apple arrangement bag ball balloon banana basket bean bicycle bike bill bird block board boat book bottle
bowl box boy brick brother bucket bus bushel cake candle candy can car card carrot case cat chair chapter chicken
chocolate choice circle class classmate clip coin combination cookie corner cow crayon customer cupcake cube dart desk
diagonal digit divisor dog doll donut door dot doughnut dress drop duck edge egg element employee envelope face factor
farmer flavor flight flower friend frog fruit function game gift girl glass goal goat grape guest guitar hat hen horse
hotel house inning integer item jar job kid kitten lamp lap leg letter line marble match meal member mistake muffin mug
necklace needle notebook number orange outcome outfit package packet page painting pancake paper parent participant
passenger path peach pear pen pencil permutation person pet photo picture piece pig pill pizza plane plant plate player
plum possibility potato prime prize problem puppy puzzle question rabbit rectangle room root rose route row runner
sandwich school seat seed sequence shell ship shirt shoe side sister slice snack sock solution song spoon spot square
stamp star stick stone stop store story strawberry student subset table tank teacher team term test ticket tile
tomato toy train tree triangle trip truck turn value vehicle video visitor voter vote wall way wheel window winner
word worker zero
child/children man/men woman/women person/people tooth/teeth die/dice fish/fish sheep/sheep goose/geese mouse/mice
loaf/loaves leaf/leaves knife/knives vertex/vertices ox/oxen times/times
人/人 个/个 個/個 本/本 枚/枚 名/名 只/只 件/件 张/张 条/条 辆/辆 岁/岁 次/次 种/种 개/개 명/명 つ/つ 匹/匹 冊/冊 台/台
"""
"""Things that are counted, which in `\\text{}` only say what the number is of. Halves and dozens it multiplies."""

_POWERS = {"square": 2, "sq": 2, "squared": 2, "平方": 2, "cubic": 3, "cu": 3, "cubed": 3, "立方": 3}
_TOKEN = re.compile(
    r"\s*(\^\s*\(?\s*-?[0-9]\s*\)?|(?<=[a-zA-Z])[23](?![0-9])|[^\W\d_]+(?:-[^\W\d_]+)?|[°%‰$€£¥₹₩₽₺₪฿₱₫₦¢*/()])"
)
_IN_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt)|[mhf]box)(?![a-zA-Z])")
_SIGNS = {"circ": "°", "degree": "°", "Omega": "Ω", "mu": "u", "cdot": "*", "times": "*"}
_SIGN = re.compile(r"(?:\^\s*(?:\{\s*)?)?\\(circ)(?![a-zA-Z])|\\(degree|Omega|mu|cdot|times)(?![a-zA-Z]) ?")


def _plural(name: str) -> str:
    if name.endswith(("s", "x", "ch", "sh", "tato", "mato")):
        return name + "es"
    return re.sub(r"(?<![aeiou])y$", "ie", name) + "s"


def _names(entry: str) -> tuple[str, str]:
    """Singular and plural of an entry `singular` or `singular/plural`."""
    singular, slash, plural = entry.strip().casefold().partition("/")
    return singular, plural if slash else _plural(singular)


def _by_name(table: str) -> dict[str, str]:
    """Name → canonical unit."""
    lines = (line.partition(":") for line in table.strip().splitlines())
    return {name: unit for unit, _, entries in lines for entry in entries.split(",") for name in _names(entry)}


_OF_NOUN = {name: _names(entry)[0] for entry in _NOUNS.split() for name in _names(entry)}
_OF_CURRENCY = _by_name(_CURRENCIES)
_OF_NAME = _by_name(_UNITS) | _OF_CURRENCY
_OF_SYMBOL = {symbol: unit or symbol for symbol, _, unit in (entry.partition("=") for entry in _SYMBOLS.split())}
_PLAIN_SYMBOLS = frozenset(_PLAIN.split())
_CURRENCY_BEFORE = re.compile(r"([-+]?)\s*([A-Z]{3}|Rs\.?|[$€£¥₹₩₽₺₪฿₱₫₦])\s*(?=[-+.0-9])")


def currency_before(text: str) -> tuple[str, str]:
    """The canonical currency before a number, or "", and the text without it."""
    match = _CURRENCY_BEFORE.match(text)
    if match is None or (currency := _OF_CURRENCY.get(match[2].rstrip(".").casefold())) is None:
        return "", text
    return currency, match[1] + text[match.end() :]


@lru_cache(maxsize=4096)
def unit_of(text: str, behind_formula: bool = False) -> str | None:
    r"""The canonical unit that a text behind a number is, "" where there is none, None where it is something else.

    `m/s`, `\text{ meters per second}` and `\mathrm{m\,s^{-1}}` are all `m s^-1`.

    Args:
        behind_formula: no number of digits stands before the text: letters outside `\text{}` may go on with it.
    """
    if not text.strip():
        return ""
    words = _IN_TEXT.sub(" ", text)
    in_text = words != text
    words = _SIGN.sub(lambda sign: _SIGNS[sign[1] or sign[2]], words).replace("{", " ").replace("}", " ")
    if not words.isascii():
        words = words.replace("²", "^2").replace("³", "^3")
    return _read(words.replace(".", " "), in_text, behind_formula)


def _read(text: str, in_text: bool, behind_formula: bool) -> str | None:
    """The canonical unit of a text without commands."""
    tokens: list[str] = []
    end = 0
    while match := _TOKEN.match(text, end):
        tokens.append(match[1])
        end = match.end()
    if text[end:].strip():
        return None
    factors: list[tuple[str, int]] = []
    power = 1
    below = in_brackets = False
    counts = in_text
    before = token = ""
    while tokens:
        before, token = token, tokens.pop(0)
        if (token in ("/", "per") and tokens[:1] != ["cent"]) or (token in "*()" and factors):
            below = token in ("/", "per") or (below and token != ")")
            in_brackets = (in_brackets or token == "(") and token != ")"
        elif factors and (token[0] in "^23" or token in ("squared", "cubed")):
            unit, exponent = factors[-1]
            factors[-1] = (unit, exponent * (_POWERS.get(token) or int(token.strip("^( )").replace(" ", ""))))
        elif token.casefold() in _POWERS:
            power = _POWERS[token.casefold()]
        else:
            found, is_noun, counts_outside = _factor(token, tokens)
            if (
                found is None
                or (is_noun and factors and not below)
                or (not in_brackets and _is_apart(token, before, factors, tokens))
            ):
                return None
            counts = counts or (
                counts_outside and not _multiplies(token, tokens, behind_formula and power == 1, text[0] == " ")
            )
            factors.append((found, -power if below else power))
            power, below = 1, below and in_brackets
    compact = text.replace(" ", "")
    if not factors or power != 1 or below or (len(compact) == 1 and compact in ascii_letters and compact not in _ALONE):
        return None
    if not counts and (behind_formula or compact not in (_BEHIND_SPACE if text[0] == " " else _VELOCITIES).split()):
        return None
    return " ".join(sorted(unit if power == 1 else f"{unit}^{power}" for unit, power in factors))


def _is_apart(token: str, before: str, factors: list[tuple[str, int]], behind: list[str]) -> bool:
    """Whether a letter stands behind a unit that it does not multiply."""
    if len(token) > 1 or token not in ascii_letters or not factors or before in ("*", "/", "(", "per"):
        return False
    return not (behind and behind[0][0] in "^/23") and factors[-1][0] not in _TOGETHER.get(token, "").split()


def _multiplies(token: str, behind: list[str], behind_formula: bool, apart: bool) -> bool:
    """Whether the letters of a plain symbol may as well be variables, by what stands before it and behind it."""
    if token in _PRODUCTS.split():
        return behind_formula or not apart or (behind[:1] != [] and behind[0][0] in "^23")
    return behind_formula and len(token) == 2 and token.isascii() and token not in _NO_PRODUCTS.split()


def _factor(token: str, behind: list[str]) -> tuple[str | None, bool, bool]:
    r"""The unit of a word, or of it and the next, which it then takes; whether it is a noun; whether it counts outside
    `\text{}`."""
    if behind and (unit := _OF_NAME.get(f"{token} {behind[0]}".casefold())):
        behind.pop(0)
        return unit, False, True
    name = token.casefold()
    if (name != token or name not in _OF_NAME) and (unit := _OF_SYMBOL.get(token)):
        return unit, False, token in _PLAIN_SYMBOLS or not token.isascii()
    if unit := _OF_NAME.get(name):
        return unit, False, len(name) > 2 or token in _PLAIN_SYMBOLS or name in _PLAIN_SYMBOLS or not name.isascii()
    return _OF_NOUN.get(name), True, not name.isascii()

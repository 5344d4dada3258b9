# SPDX-License-Identifier: Apache-2.0
"""Words of Open Clip Art: nouns, kinds, English for Italian and French titles."""

# Nouns that say by themselves what a drawing shows.
NOUNS = frozenset(
    noun.replace("_", " ")
    for noun in """
airplane ambulance anchor angel angelfish ant antelope antenna apple architect armadillo
arrow axe azalea baboon baby backpack bacon bag balloon balloons bamboo banana bananas
barn barrel baseball baseball_bat basket bat battery beagle bear beaver bed bee beer
bench bible bicycle bike bin binoculars bird biscuit bison blender block boat bomb book
boomerang boot bottle bouquet bow bowl box boxing_glove boy brain bread brick bride
brush bucket bug building bull bulldog bullet_hole bunny burger burrito bus butter
butterfly button cactus cake calculator camcorder camel camera campfire can candle candy
candy_cane cap car card carpenter cart cassette castle cat caterpillar cell_phone cello
certificate chain chainsaw chair cheese cheetah chef cherries cherry chicken chipmunk
christmas_tree clipboard clock cloud clown coat cockroach coffee coin comet compass
computer computer_mouse cone conifer cookie cormorant corn corn_dog couch cow crawfish
crayon croissant cross crow crown cruiser cube cucumber cup cutlery daffodil dagger
daisy dancer daylily deer desktop diamond dice dinosaur dish disk doctor dog dog_head
dolphin donkey dove dragon dragon_head dragonfly dress drill drum duck eagle ear earring
eclipse egg elephant engine envelope eraser eye factory fairy fan farm feather fern
fir_tree fire_engine fireman fireworks fish flamingo flask floppy floppy_disk
flowchart_symbol flower flowers flute fly folder footprint fork fox foxglove french
fries frog fruit garlic gear geranium ghost gift gift_box giraffe girl glass globe glove
goat golden_icon goose gourd grape grapefruit grapes grasshopper grave grenade grill
guitar gull gun hamburger hammer hamster hand handbag hard_disk hat hawk headphones
heart helicopter helmet hen hill horn horse horse_head hospital hosta hot_air_balloon
hot_dog hourglass house hydrangea hydrant ibex ice ice_cream ice_cube icecube icicle
igloo insect iron jar jigsaw_piece juice_box juice_glass jukebox kangaroo key keyboard
king kitten knife knight ladder ladybug lamp lampshade landscape lantern laptop leaf
lemon lemonade leopard letter lifebelt light_bulb lightbulb lighthouse lightning
lightsaber lily lime lion lips lizard lobster lock lollipop magnet magnifying_glass
magnolia mail mailbox man mantis maple maracas medal megaphone melon mermaid mice
microscope milk milk_carton mitten modem monitor monkey monster moon mosquito motorbike
motorcycle mountain mouse mouth muffin mug mushroom music_note musical_note necklace
newspaper nose note notebook nurse oboe office_chair olive_tree onion orange orangutan
orca orchid ostrich owl padlock paint_brush palette palm pan pancake pansy paper
paper_plane paperclip parachute parrot party peace_sign peach pear pen pencil penguin
penny pepper person phone piano pie pig piggybank piglet pill pin pineapple pirate_flag
pizza plane planet plant plate playing_card plum policeman potato present pretzel
princess printer projector puffin pumpkin puppy puzzle queen rabbit raccoon racket radio
radish rainbow ram rat razor record rhinoceros ribbon ring road_sign robot rocket
rooster rose router rubber_duck runner safe sailboat sakura salad sand_glass sandal
sandals sandwich satellite saturn sausage saw saxophone scale scanner scarecrow school
scissors scooter scorpion screen screwdriver scroll seagull seahorse seal server
shamrock shark sheep shield ship shirt shoe shovel shuttle signal_flag signpost sink
skateboard skater skeleton skier skull skyline skyscrapers sled sledge smiley snail
snake snow snowflake snowman soap soccer_ball sofa soldier soup spaceship spear
speech_balloon spider spoon sports_car spyglass squirrel stamp stapler star stethoscope
stick_man stop_sign stopwatch strawberry submarine suitcase sun sunflower sunglasses
surfboard swan sword syringe table taco tank tapir tea teapot teddy_bear teddybear
telephone telescope television tent test_tube thermometer thumbtack ticket tiger
toadstool toast toaster toilet tomato tooth toothbrush torch towel tower toy_plane
tractor train tram treble_clef tree triangle trillium troll trombone trophy truck
trumpet tulip tulips turkey turtle umbrella violet violin virus wallet wasp watch
water_tower watermelon webcam whale wheel wheelbarrow window wine_glass wolf wolf_head
woman wreath wrench xylophone zebra
""".split()
)

_KINDS = """
dog: dogs beagle bulldog puppy; cat: cats kitten housecats; horse: horses pony; bear:
bears; monkey: chimp; penguin: tux; dinosaur: dinosaurs; butterfly; bird: birds; fish:
fishes; frog: frogs rana; insect: insects bugs; reptile: lizard snake turtle; feline:
big_cats; dragon; mammal: mammals; animal: animals; apple: apples; pizza; cake; candy;
ice cream: icecream; pie; fruit: fruits; vegetable: vegetables vegitable; dessert:
desserts; beverage: beverages drink juice; food: dairy meat meats_and_eggs
breads_and_carbs; flower: flowers; tree: trees evergreen; mushroom; plant: plants; car:
cars automobile auto jeep hummer hummers; truck: trucks; bus; boat: boats sailing
boating ship; airplane: plane airtravel aircraft; train; bicycle: bike; rocket; vehicle:
vehicles; road sign: roadsign roadsigns; house: houses home homes; furniture; castle;
church; building: buildings; city; hat: hats; shoe: shoes; jewelry; clothing; smiley:
smilies; stick man: stickmen; baby; girl; boy; woman: lady; man; face; body part:
bodypart; people; chess: chess; playing card: cards card; dice; toy: toys; game: games;
ball; sport: sports; musical instrument: instrument musician; music; christmas: xmas;
halloween; easter; valentine: valentines; thanksgiving; party; holiday; religion:
christianity; clock: clocks; book: books; telephone: phone; camera; key; padlock: lock;
pen; pencil; scissors; light bulb: lightbulb bulb; battery; robot; office; weapon:
weapons gun sword; tool: tools; moon; sun; planet: planet; cloud; lightning; astronomy;
weather; map: maps; flag: flags; signal flag: signalflag semaphore; led; arrow: arrows
arrowshape; button: buttons; heart; jigsaw: jigsaw; flowchart; speech balloon: callout
callouts; flourish; pattern: patterns; money; container: containers; decoration:
decorations; electronics; hardware; folder: folders; science; icon: icons
"""

# Kinds that say less of what a drawing shows than its title does.
VAGUE_KINDS = frozenset(
    "office hardware icon game sport music party holiday religion tool science "
    "electronics decoration container button folder people food weather".split()
)

_ENGLISH = """
abeille = bee; abitazione villa con giardino = house with garden; acquila = eagle;
aglio = garlic; al bar = people at the bar; albero = tree; ambulanza = ambulance;
amibe = amoeba; analisi del sangue = blood test; anatra = duck; anelli = rings;
antilope = antelope; ape miele = honey bee; appunti = notes; aquila frontale = eagle
from the front; arbre modern = tree; architetto = architect; as carreau = ace of
diamonds; as coeur = ace of hearts; as pique = ace of spades; as trefle = ace of
clubs; asse da stiro = ironing board; asso carte = ace card; attaccapanni con
vestito da donna = dress on a hanger; attenzione = attention sign; attenzione
rotondo = round attention sign; aviso = notice; aziendavendite = company sales;
ballerina = dancer; barattolo di pillole = jar of pills; betoniera = concrete mixer;
biberon = baby bottle; bicicletta cycle = bicycle; binocolo bn = binoculars; blocco
ghiaccio = block of ice; blocco notes = notepad; bobi = dog; bobine = film reel;
bofish = fish; borsa estiva = summer bag; borsetta = handbag; bottiglia di vino
pregiato = bottle of wine; bretagne = brittany; bussiness woman donna in carriera =
business woman; bussola = compass; calamita = magnet; calcolatrice = calculator;
calebasse = gourd; calzettoni = socks; camicia in seta = silk shirt; cammello =
camel; candela = candle; canguro = kangaroo; cani e gatti cat and dog = cat and dog;
capitello modanatura modanature moulure moulures = column capital; carpentiere =
carpenter; carretta da cantiere = wheelbarrow; carta = paper; carte de france = map
of france; cartella dossier directory = folder; cartes = playing cards; casa dei
sogni = dream house; casa in campagna = country house; casa plurifamigliare =
apartment house; casa verde = green house; casco con microfono = headset; cassa d
epoca = antique cash register; cassa negozio = cash register; cassette video = video
cassette; cavalletta = grasshopper; cavallo = horse; cestino pieno = full bin;
cestino vuoto = empty bin; cesto = basket; ch teau fort = castle; chalet di montagna
= mountain chalet; champignon = mushroom; charge lourde = heavy load sign; chateau =
castle; chaussee glissante = slippery road sign; chaussée particulièrementglissante
= slippery road sign; chiave = key; château fort = castle; cigni bianchi e neri =
white and black swans; cigno = swan; cigno di notte nella palude = swan at night in
a swamp; cigno di spalle = swan from behind; cinepresa = film camera; ciuccio =
pacifier; civiere = stretcher sign; clessidra = hourglass; coccinella = ladybug;
coccinella rollandin = ladybug; coccinelle = ladybug; coccinellona = big ladybug;
colombo = dove; colori = colours; comburant = oxidizing sign; come si dispongono le
posate = cutlery; condominio = apartment building; coniglio = rabbit; cornetto =
croissant; corridore = runner; corrosif = corrosive sign; couronne = crown;
cronometro = stopwatch; cubo giallo = yellow cube; cubo rosso = red cube; cubo verde
= green cube; cymru flag wales = flag of wales; danger général = danger sign; danger
électrique = electrical danger sign; decorazione = decoration; defense de fumer = no
smoking sign; defense eteindre avec eau = do not extinguish with water sign;
demolizione costruzione = demolition; dente = tooth; diagramma = diagram; dino =
dinosaur; dinosauri = dinosaurs; dinosauro = dinosaur; direction a suivre =
direction sign; direction à suivre = direction sign; disquete = floppy disk; donna
casinista = woman; donna incinta = pregnant woman; double croche = semiquaver note;
douche securite = safety shower sign; eau non potable = not drinking water sign;
echelle = ladder sign; elefante = elephant; elefante in corsa = running elephant;
elefantone = big elephant; entree interdite = no entry sign; esperimento chimico =
chemistry experiment; extincteur = fire extinguisher sign; extremement inflammable =
extremely flammable sign; fabbrica = factory; facilement inflammable = highly
flammable sign; farfalla butterfly = butterfly; farfalla contorno = butterfly
outline; farfalla semplice = simple butterfly; farfalla stilizzata = stylized
butterfly; fata fatina = fairy; fattoria = farm; ferro da stiro = iron; festoni =
festoons; finestra = computer window; finestra estendi = computer window; finestra
hz = computer window; finestra ridimensiona = computer window; finestre sovrapposte
= computer windows; finestre vt = computer windows; fiocco = bow; fiore = flower;
flamand = flamingo; flamme nue interdite = no open flame sign; flat cake = flat
cake; foglie arancioni = orange leaves; foglie marroni = brown leaves; foglie rosse
= red leaves; foglie verdi = green leaves; foglio e mondo = sheet and globe; forbici
e pettine scissors and comb = scissors and comb; forchettoni da grigliata = barbecue
forks; formichina = small ant; formicona = big ant; formulario = form; frying pan
padella in italian = frying pan; fuoco da campeggio = campfire; gabbiano = seagull;
gabbiano piccolo = small seagull; galette = biscuit; gallo di profilo = rooster from
the side; gateau = cake; gattina cat = cat; gatto cat = cat; gatto nero = black cat;
gelato all italiana = ice cream; ghirlande festa = party garlands; giardinaggio =
gardening; glace = ice cream; glace italienne = soft ice cream; grattacieli grigi =
grey skyscrapers; griglia = grill; grondaia = gutter; guanti e pinze = gloves and
pliers; gufo civetta = owl; high tension danger = high voltage sign; home piche =
house; human humain umano seduto = sitting person; imbianchino in piedi = house
painter; insetto = insect; interdiction pietons = no pedestrians sign; interdiction
vehicules manutention = no forklifts sign; io bambina = girl; io donna uomo = man
and woman; irritant = irritant sign; istogramma = bar chart; kubek herbaty mug of
tea = mug of tea; la prugna = plum; lampada da cantiere = work lamp; lampada di
aladino aladin = aladdin lamp; lance a incendie = fire hose sign; lattine di birra =
beer cans; le mie tigri preferite = tigers; lens lente = magnifying glass; lente
meno = magnifying glass; lente normale = magnifying glass; lente più = magnifying
glass; leone = lion; lettera = letter; libellula = dragonfly; libellule = dragonfly;
libro di ricette di cucina italiana w italia = italian cookbook; livella = spirit
level; lucchetto grigio = grey padlock; lucchetto ottone = brass padlock; lucertola
= lizard; lucertola arrotolata = curled lizard; lucertola maya = maya lizard;
lucertolona = big lizard; lucertolone = big lizard; lumaca = snail; lumaca turbo =
turbo snail; lézard = lizard; macchina caffe = coffee machine; macchina fotografica
digitale = digital camera; mante religieuse = praying mantis; mantide religiosa =
praying mantis; manuscriot = manuscript; manuscrit = manuscript; marchio gallina =
hen logo; martellare = hammering; mattone poroton = brick; mazzo di fiori = bunch of
flowers; medicina dottore = doctor; metro avvolgibile = tape measure; microscopio =
microscope; mix cucina frullatore = blender; mobile = piece of furniture; mondo =
globe; montacarichi = hoist; moschito = mosquito; moschito stecchito = dead
mosquito; mostriciattolo = little monster; motivo geometrico = geometric pattern;
motosega = chainsaw; mucca = cow; ne pas toucher = do not touch sign; network could
= network cloud; nocif = harmful sign; noi due insieme brindisi calici = toasting
glasses; nonno sport = old man doing sport; nuage = cloud; nucleare simbolo =
nuclear symbol; obligation generale = obligation sign; olivier one = olive tree;
ontologia del vino = bottle of wine; orme sulla neve = footprints in the snow;
orologio da parete = wall clock; orso = bear; ours = bear; pacco regalo = gift box;
pace e bene = dove of peace; packman = pacman; paesaggio marino = sea landscape;
palloncini = balloons; pallone aerestatico = hot air balloon; pannocchia di gran
turco = ear of corn; pansement = plaster; pantyhose collant = pantyhose; papera =
duck; paprika = pepper; passo carrabile = driveway sign; pastas = folders; pasteque
= watermelon; pattinatrice = ice skater; pattinatrici sul ghiaccio = ice skaters;
pattino = ice skate; pecora = sheep; pecorella = small sheep; pennello = paint
brush; pennuto = bird; peperoncino pepper = chili pepper; pera = pear; pesca =
peach; pescetto = small fish; pescetto arancione = small orange fish; pesistica =
weight lifting; pinguino = penguin; pinguino col piccolo = penguin with chick;
pinzatrice = stapler; pinzatrice grigia = grey stapler; pittura con pennello = paint
brush; pizza stagioni = pizza; plain tree = tree; pollo = chicken; poltrona ufficio
= office chair; pomodori = tomatoes; porcinet = piglet; portafoglio = wallet;
premiers secours = first aid sign; principessa = princess; profilati profilato ipe
ipn acciaio = steel beam; profilo della citta = city skyline; proiettore =
projector; protection obligatoire contre les chutes = fall protection sign;
protection obligatoire corps = body protection sign; protection obligatoire figure =
face protection sign; protection obligatoire mains = hand protection sign;
protection obligatoire ouie = ear protection sign; protection obligatoire pieds =
foot protection sign; protection obligatoire pietons = pedestrian protection sign;
protection obligatoire tete = head protection sign; protection obligatoire voies
respiratoires = breathing protection sign; protection obligatoire vue = eye
protection sign; provetta = test tube; provetta plasma sangue = test tube of blood;
provette = test tubes; prune = plum; pulsante = button; punaisa = bug; puntine =
thumbtacks; quattro farfalle = four butterflies; radiations ionisantes = ionizing
radiation sign; radiations non ionisantes = radiation sign; ragazza bionda = blonde
girl; ragazza bruna = brunette girl; ragazza rossa = red-haired girl; ragazza seduta
= sitting girl; ragazzo = boy; ragnetto incazzato = angry spider; ragno figo =
spider; ramarro = green lizard; rana = frog; ravanello = radish; rayonnement laser =
laser sign; recznik wiper = towel; reunion = meeting; rincage yeux = eye wash sign;
rios de españa = rivers of spain; risque biologique = biohazard sign; risque pour l
environnement = environmental hazard sign; rondelle d orange = orange slice;
rondelle orange = orange slice; rosa = rose; ruota dentata = gear wheel; ruota
dentata grigia = grey gear wheel; sacco a pelo per campeggio = sleeping bag;
salvagente = lifebelt; sapin = fir tree; sapone liquido = liquid soap; scala doppia
= step ladder; scatolone = cardboard box; schermo macintosh = computer screen;
scissors forbici = scissors; scodella gatto = cat bowl; scolapasta e pentola =
colander and pot; scotch = adhesive tape; secchio e spugna = bucket and sponge;
sedia e ombrelloni = chair and parasols; sedia in legno = wooden chair; sega per
legno = wood saw; serratura = lock; set gatti = set of cats; signore = gentleman;
signorina = young woman; signorina in viola = young woman in purple;
signorinacappello = young woman with hat; signorinafoulard = young woman with scarf;
silouettedonnavestiti = silhouettes of women; simbol donna = woman symbol; simbol
medicina = medical symbol; simbolo egizio = egyptian symbol; simbolo emergenza
sanitaria = medical emergency symbol; simbolo giapponese = japanese symbol; simple
croche = quaver note; siringa = syringe; sole = sun; sortie issue de secours =
emergency exit sign; spain peninsule = map of spain; spanish regions = map of
spanish regions; spaventapasseri = scarecrow; sportcar = sports car; stambecco
valdostano = ibex; stampante = printer; stara ksiega old book = old book; stemma
comune saint vincent valle d aosta = coat of arms; stetoscopio fonendoscopio =
stethoscope; stormo di uccelli = flock of birds; striscia agnellini = row of lambs;
striscia mucche = row of cows; struzzo = ostrich; sub subacqueo = scuba diver;
tabella = table; tacchino = turkey; tacchino di natale = christmas turkey; tante
orme sulla neve = footprints in the snow; tasto = button; tatoo tatuaggio tatuaggi =
tattoo; tavola esame ottico = eye chart; tavolo in legno = wooden table; tavolozza =
palette; tazza di caffe = cup of coffee; teiera tazza = teapot and cup; telecamera =
video camera; telephone lutte incendie = fire telephone sign; telephone sauvetage =
emergency telephone sign; televisore telecomando = television and remote control;
tenda da campeggio = camping tent; teschio = skull; texturelegno = wood texture;
tigre = tiger; topo = mouse; toque = chef hat; toro al tramonto = bull at sunset;
toros = bull; torta = cake; tramezzino = sandwich; traslocatore = furniture mover;
trattore = tractor; trebuchement = tripping hazard sign; trekking in montagna =
hiking in the mountains; tres toxique = very toxic sign; uccello bianco e nero =
black and white bird; uccello profilo = bird from the side; unita disco rigido =
hard disk; uovo sorridente = smiling egg; utensile sega = saw; utensili chiave e
cacciavite = wrench and screwdriver; utente singolo = user; utenti = users; vacca
pezzata rossa valdostana = red spotted cow; valigie bags = suitcases; vehicules
manutention = forklift sign; vestito rosa = pink dress; viti = screws; x simbol = x
symbol; zaino per montagna = backpack; zanzara = mosquito; zanzara cretina = silly
mosquito; zielony kubek herbaty green mug of tea = green mug of tea; zucca = pumpkin
"""


def _pairs(table: str, separator: str) -> list[tuple[str, str]]:
    rows = (row.partition(separator) for row in " ".join(table.split()).split("; "))
    return [(name, value) for name, _, value in rows]


# A title in lower-case words, without numbers at the end -> what it means.
ENGLISH: dict[str, str] = dict(_pairs(_ENGLISH, " = "))

# A keyword or the name of a folder -> the kind of thing it stands for. The rows begin
# with the most specific kinds.
KINDS: dict[str, str] = {
    word: kind for kind, words in _pairs(_KINDS, ":") for word in (kind, *words.split())
}

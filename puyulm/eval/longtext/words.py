"""Plain English words for made texts: needles' keys, lists to count, and prose."""

from __future__ import annotations


def word_tuple(text: str) -> tuple[str, ...]:
    """The different words of a text, sorted."""
    return tuple(sorted(set(text.split())))


NOUNS = word_tuple("""
acorn actor address afternoon airport album alley almond amber anchor animal ankle answer antler apple apron arch
archer arrow artist aspen atlas attic author autumn avenue axle badge badger bagel baker balcony ballad balloon bamboo
banana bandage banjo banner barber barley barn barrel basin basket bathtub battery bayou beacon beaker beaver bedroom
beetle bell bench berry bicycle birch biscuit bishop blanket blossom bluff boat bobbin bonfire book boot border bottle
boulder bowl bracelet branch brass bread breeze brick bridge broom brother brush bubble bucket buckle buffalo bugle
builder bumper burrow bushel butcher butter button cabbage cabin cabinet cable cactus camel camera campus canal candle
canoe canopy canvas canyon captain caravan carbon cargo carpet carriage carrot cartoon castle cattle cavern cedar
ceiling cellar cello cement chalk chamber channel chapel chapter charcoal chariot cheese cherry chest chestnut chicken
chimney chisel choir cider cinnamon circle circus citizen clarinet clay cliff climate clinic clock closet cloud clover
coach coast cobbler cocoa coconut coffee collar college colony column comet compass concert copper coral cork corner
cottage cotton couch council counter county courtyard cousin cowboy coyote cradle crane crater crayon cream creek
cricket crocus crystal cupboard curtain cushion customer cymbal cypress daffodil dagger dairy daisy dancer daughter
deacon deer delta denim deputy desert desk dessert diamond diary dinner diver doctor dolphin domino donkey doorway
dough dove dragon drawer dresser driver drum duck dune eagle earring easel echo eclipse editor elbow elephant elevator
elm ember emerald empire engine envelope escort estate evening fabric factory falcon family farmer feather fender
fennel fern ferry festival fiddle field finger fireplace fisher flagon flamingo flannel flask fleece flicker floor
flour flower flute foal fog folder forest forge fork fortress fossil fountain fox freezer freight friend frog frontier
frost funnel furnace gallery galley garage garden garlic garment garnet gate gazelle geyser giant ginger giraffe
glacier glass glove goblet goldfish gondola goose gopher gorge governor grain granite grape grass gravel grocer grove
guard guest guitar gulf gull gutter gymnast habitat hail hallway hammer hammock hamper handle harbor harness harp
harvest hatchet hawk hazel headline heater hedge helmet herald herb hermit heron highway hill hinge honey hoof horizon
horn horse hospital hostel hotel hound hunter hut iceberg icicle inlet insect island ivory ivy jacket jackal jaguar
janitor jasmine jelly jersey jewel jockey journal journey judge jungle juniper kayak kennel kettle kernel keyboard
king kitchen kite kitten knapsack knight knuckle label lace ladder lagoon lamb lantern laptop larch lasso lattice laurel
lavender lawyer leaflet leather ledger lemon lens leopard letter lever library lichen lighthouse lilac lily limestone
linen lion lizard llama lobby lobster locket locksmith lodge loom lotus lumber lunch lynx machine magnet magpie mailbox
mallet mango manor mansion mantle maple marble margin mariner market marmot marsh mason mast mattress mayor meadow
medal melody melon mentor merchant mercury meteor midnight mill mineral minnow mirror mitten moat mole monarch monkey
monsoon moor moose morning mortar mosaic moss mother motor mountain mouse museum mushroom musician mustard nail napkin
nectar needle neighbor nephew nest nettle nickel niece night noodle notebook novel nugget nurse nutmeg oak oar oasis
oatmeal oboe ocean octopus office olive onion opal orange orbit orchard orchid organ origami ostrich otter oven owl
oyster paddle padlock page painter palace palm pancake panda panel panther paper parade parcel parchment park parlor
parrot parsley partner pasture patch path patrol pavement peach peacock peanut pearl pebble pelican pencil pendant
penguin pepper perfume petal pheasant piano pickle picnic pigeon pilgrim pillar pillow pilot pine pioneer pirate
pistachio pitcher planet planter plaster plateau platform platter plaza plum plumber pocket poem poet pond pony poplar
poppy porch
porcupine portal porter portrait postcard potato potter powder prairie president prince princess printer prison puddle
pulley pumpkin puppet puppy pyramid quail quarry quartz queen quilt quiver rabbit raccoon racket radish raft railway
rainbow raisin rake ranch ranger raven razor reactor receipt recipe reef referee reindeer resort restaurant ribbon rice
rider ridge rifle river road robin rocket rooster root rose rowboat ruby rudder ruler runner saddle sailor salad salmon
salt sandal sapphire satchel saucer sausage sawmill scarf scholar school scissors scooter scorpion screen sculptor
seagull seashell season secretary seed senator sergeant shadow shampoo shark shed sheep shelf shell shepherd sheriff
shield ship shirt shore shoulder shovel shrimp shutter sidewalk signal silk silver singer sister skater sketch skillet
skipper skirt slate sled sleeve slipper smoke snail snow soap soldier sonnet soup spade spaniel spark sparrow spear
spider spinach spiral sponge spoon spruce squash squirrel stable stadium stairway stallion stamp statue steam steeple
stem step steward stocking stone stool storm story stove stranger straw stream student studio summer summit sunset
surgeon swallow swamp sweater swimmer sycamore syrup table tailor tambourine tapestry tavern teacher teapot telescope
temple tenant tent terrace theater thicket thimble thistle thread throne thumb thunder ticket tiger timber tinker toast
toaster tomato torch tortoise tower trader trail trailer train tray treasure tribune trombone trout trumpet trunk tulip
tunnel turban turkey turnip turtle tuxedo twilight umbrella uncle unicorn uniform valley vase vault veil velvet vendor
veranda vessel viaduct village vine vinegar violet violin visitor volcano voyage waffle wagon waiter wall wallet walnut
walrus warbler warden wardrobe warehouse wasp watchman water waterfall weasel weaver wedding well whale wheat wheel
whisker whistle widow willow window winter wizard wolf wombat wood workshop wreath wren writer yacht yard yarn yogurt
zebra zephyr zinc
""")

ADJECTIVES = word_tuple("""
able absent agile amused ancient anxious ashen awake awkward bald barren bashful beige bitter bland blank bleak blond
blue bold brave breezy brief bright brisk broad broken bronze brown bulky busy calm careful careless charming chatty
cheap cheerful chilly chubby civil clean clear clever cloudy clumsy coarse cold colorful common complex cool cosy
costly cozy crafty cranky crimson crisp crooked crowded cruel curious curly curved daily damp daring dark dashing dear
decent deep dense dim direct distant dizzy dotted drab dreary dry dull dusty eager early earnest easy edible elated
elegant empty endless equal exotic faded faint fair faithful false famous fancy far fast fearless feeble festive fierce
fine firm flaky flat fluffy fond formal fragile frail frank free fresh friendly frosty frozen full funny furry fuzzy
gallant generous gentle genuine giddy gifted glad gleaming global glorious glossy golden good graceful grand grateful
grave gray great greedy green grim grumpy guilty handsome handy happy hardy harsh hasty hazy healthy hearty heavy
helpful hidden hollow homely honest hopeful hot huge humble hungry husky icy idle immense jagged jolly joyful juicy
keen kind large late lavish lazy lean light limp little lively local lonely long loose lost loud lovely loyal lucky
mad magical massive mature meek mellow merry mighty mild minor misty modern modest moody muddy musical muted narrow
native neat nervous new nice nimble noble noisy normal novel oblong odd old open orderly ornate outer oval pale patient
peaceful perfect petite plain playful pleasant plump polite poor precious pretty prime private proper proud public pure
purple puzzled quaint quick quiet rapid rare ready real regal remote rich rigid ripe robust rosy rough round royal rude
rural rusty sacred sad safe salty sandy scarce scarlet secret serene severe shabby shady shallow sharp shiny short shy
silent silky silly simple sincere sleepy slender slim slippery slow small smart smooth snowy soft solemn solid somber
sour spare sparse spicy splendid spotless square stable stale stark steady steep stern sticky stiff still stormy stout
strange strict striped strong sturdy sudden sunny superb sweet swift tall tame tart tasty teal tender tense tepid thick
thin thirsty thorough tidy timid tiny tired tough tranquil trim true trusty typical ultimate unique upbeat urban useful
usual vague vain vast verdant vibrant vivid wandering warm wary watery weak wealthy weary weekly wet white whole wicked
wide wild windy wise witty wooden woolly worn worthy yellow young zany zealous
""")

VERBS = word_tuple("""
accept achieve admire admit adopt advise agree allow amuse announce applaud argue arrange arrive assist attach attend
bake balance bathe behave believe bless blink boast boil borrow bounce bow breathe bury buzz calculate carry carve
challenge chase cheer chew choose clap climb collect comfort compare complain complete connect consider continue cook
copy correct cough count crawl create cross cry curl dance deliver depend describe deserve detect develop disappear
discover divide double doubt drag dream drift drip earn educate embrace employ encourage enjoy enter escape examine
excite excuse exercise expand expect explain explore fasten fetch fix float flow fold follow forgive frighten gather
gaze glow grab greet grin guess guide hang happen harvest heal help hesitate hop hover hug hum hurry identify imagine
impress improve include increase inform inspect intend invent invite join juggle jump kneel knit knock launch laugh
learn lend lick listen load lock manage measure melt mend mention mix mourn multiply nod notice obey observe obtain
offer order pack paint pause peel perform persuade plant plead polish practice praise pray prefer prepare present
preserve prevent promise protect provide pull punish push question realize receive recognize record reduce reflect
refuse regret rejoice relax remain remember remind repair repeat replace reply report rescue return rinse rub sail
satisfy scatter scrape scream search seem separate settle shave shelter shiver shrug sigh sing sip skate sketch skip
sleep smile sneeze sniff solve spell spill spray sprinkle squeeze stare stir stretch stroll study succeed suggest
supply support surprise surround suspect swim tease telephone tempt thank throw tickle touch trace travel tremble trust
try tumble twist unite unlock unpack vanish visit wait walk wander warn wash waste wave weave welcome whisper wink
wipe wish wonder worry wrap wrestle yawn yell
""")

WORDS = tuple(sorted({*NOUNS, *ADJECTIVES, *VERBS}))

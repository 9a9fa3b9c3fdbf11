# ruff: noqa: E501  (nothing but words)
"""Everyday words for questions and texts outside the field."""

from __future__ import annotations

NOUNS = tuple(
    """cat dog horse bird fish whale spider tiger elephant mouse bee flower tree rose forest apple banana potato tomato carrot bread
cheese butter egg soup cake pizza rice chicken coffee tea wine beer water milk salt sugar river lake sea ocean mountain valley desert island
beach cloud rain snow storm wind sun moon star planet galaxy comet rocket atom electron molecule cell gene virus heart brain bone blood skin
eye ear hand foot tooth hair doctor nurse teacher lawyer farmer king queen president soldier pirate ghost dragon wizard robot child mother
father friend neighbour wedding birthday holiday school university exam homework book novel poem film song opera painting museum theatre
football tennis chess guitar piano violin drum dance house garden kitchen window door roof wall bridge road street city village car train
plane ship bicycle bus engine wheel tyre battery lamp candle clock watch phone camera radio television printer keyboard paper pen pencil knife
fork spoon plate cup bottle box bag shoe shirt coat hat ring gold silver iron copper glass wood stone plastic oil gas money bank tax price
market shop job boss office contract law court police crime war peace history religion church god love fear dream sleep pain fever cough
headache diet muscle sport game party election government country language grammar verb letter number triangle circle equation energy light
sound colour heat ice fire smoke dust earth soil seed leaf root fruit berry nut spice recipe dinner breakfast restaurant hotel ticket journey
passport border map compass summer winter spring autumn morning evening night week month year century volcano earthquake dinosaur fossil
castle pyramid temple statue crown sword shield tower lighthouse harbour anchor sail wolf fox bear rabbit snake frog owl eagle penguin""".split()
)
VERBS = tuple(
    """make build fix cook bake clean wash cut paint draw write read sing dance run swim fly climb jump sleep eat drink buy sell find lose
keep open close break grow plant water feed teach learn study remember forget love hate help save spend earn win play watch hear smell taste
touch move carry throw catch push pull turn fold sew knit print scan copy sort count measure weigh compare choose change improve describe
explain summarize translate rewrite correct check test calculate solve prove draw design invent discover sort reverse parse sum merge""".split()
)
ADJECTIVES = tuple(
    """red green blue yellow black white big small old new young fast slow cold hot warm dry wet sweet sour bitter salty soft hard heavy
light dark bright deep high low long short wide narrow thick thin rich poor cheap expensive happy sad angry tired brave clever strange famous
ancient modern wild quiet loud clean dirty sharp round flat empty full healthy dangerous poisonous rare common beautiful ugly golden frozen
Italian French German Spanish Greek Roman Chinese Japanese Indian Mexican Russian African American British electric magnetic nuclear""".split()
)
PLACES = tuple(
    """France|Germany|Spain|Italy|Poland|Norway|Sweden|Finland|Greece|Turkey|Egypt|Kenya|Nigeria|Morocco|South Africa|India|China|Japan|
Korea|Thailand|Vietnam|Australia|New Zealand|Canada|Mexico|Brazil|Peru|Chile|Argentina|Paris|London|Berlin|Rome|Madrid|Vienna|Prague|Athens|
Moscow|Tokyo|Beijing|Delhi|Sydney|New York|Chicago|Boston|Texas|California|Toronto|Lima|Cairo|Nairobi|Lisbon|Dublin|Oslo|Hamburg|Munich|
the Alps|the Andes|the Sahara|the Amazon|the Pacific|the moon|Europe|Asia|Africa|my town|our village|Iceland|Portugal|Ireland|Scotland|Hungary|
Romania|Ukraine|Iran|Iraq|Israel|Cuba|Bolivia|Nepal|Mongolia|Indonesia|Denmark|Belgium|the Netherlands|Switzerland|Austria|Croatia""".replace(
        "\n", ""
    ).split("|")
)
PEOPLE = tuple(
    """Napoleon|Julius Caesar|Cleopatra|Albert Einstein|Isaac Newton|Marie Curie|Charles Darwin|William Shakespeare|Mozart|Beethoven|Bach|
Leonardo da Vinci|Picasso|Van Gogh|Abraham Lincoln|George Washington|Queen Victoria|Gandhi|Nelson Mandela|Martin Luther King|Aristotle|Plato|
Socrates|Homer|Dante|Goethe|Tolstoy|Jane Austen|Charles Dickens|Mark Twain|Columbus|Magellan|Galileo|Kepler|Tesla|Edison|Alan Turing|Ada Lovelace|
Neil Armstrong|Charlie Chaplin|Elvis Presley|the Beatles|Madonna|Pele|Maradona|Muhammad Ali|Barack Obama|Angela Merkel|Churchill|Kennedy|Freud|
Karl Marx|Confucius|Buddha|Genghis Khan|Alexander the Great|Joan of Arc|Robin Hood|Sherlock Holmes|Harry Potter|Batman|my neighbour""".replace(
        "\n", ""
    ).split("|")
)
THINGS = tuple(
    """car|laptop|phone|camera|printer|fridge|washing machine|dishwasher|oven|bicycle|motorbike|boat|tent|guitar|piano|watch|television|
radio|telescope|microscope|compass|steam engine|light bulb|telephone|vaccine|wheel|paper|camera lens|radar|laser|battery|solar panel|dog food|
book|novel|film|restaurant|hotel|wine|pizza|jacket|mattress|chair|lamp|hammer|drill|router|website|browser|game|toy|present|sofa|carpet|bank""".replace(
        "\n", ""
    ).split("|")
)
SYLLABLES = tuple(
    """ba be bi bo bra bri ca ce cha chi co cra da de di do dra el en er fa fe fi flo fra ga ge gi glo gra ha he hi ho in ja je jo ka ke ki
kla ko kra la le li lo lu ma me mi mo mu na ne ni no nor o pa pe pi pla po pra qua ra re ri ro ru sa sce se shi si ska so sta ste stra su ta te
ter the ti to tor tra tri tu u ul va ve vi vo wa we wi wo xa xi ya yo za ze zi zo ian sky berg ton ville man son ing ist""".split()
)

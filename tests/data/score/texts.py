"""Texts written by hand for the tests: advertisements and others, worded otherwise than the templates of `seeds`.

A blank line stands between two texts.
"""

from __future__ import annotations


def _texts(block: str, joint: str = " ") -> list[str]:
    return [joint.join(text.split("\n")) for text in block.strip().split("\n\n")]


ENGLISH_ADS = _texts("""
Spring has arrived and so have our markdowns! Pick up two garden chairs, pay for one, and we will throw in the
cushions. Shop in store or on the web until stocks run out.

Struggling with back pain? The OrthoPlus belt has helped more than ten thousand people stand tall again. Order yours
now and get 20% off with free delivery anywhere in the country.

Cheap flights to Bangkok from only $399 return! Book before the end of March and receive a complimentary travel bag.
Seats are limited, so call our agents now.

We buy any car, any condition, for cash. Get an instant online quote in under a minute and have the money in your
account the same day. Call 0800 555 010 now.

Our family-run bakery now ships nationwide. Choose from over forty cakes, add a personal message, and get next-day
delivery for just $4.99. Order online today!

Need a loan fast? Apply in five minutes, get approved in ten. Bad credit welcome, no paperwork, low monthly payments.
Apply now at quickcash-loans.net!

Transform your smile with invisible braces. Free first consultation, easy payment plans and experienced dentists in
the heart of town. Book your visit today.

Luxury replica watches at unbeatable prices. All models in stock, worldwide shipping, satisfaction guaranteed. Visit
our shop and save up to 70 percent!

Make $5,000 a month working from your sofa. No experience needed, we teach you everything. Spaces are filling up
quickly, register for the free webinar now.

Best essay help online! Professional writers, original papers, on-time delivery. Get 15% off your first order with
code STUDENT15. Chat with our support 24/7.

Give your kitchen a new look with our granite worktops. Free measuring, free fitting, and prices that beat any
competitor. Contact us for a no-obligation quote.

Join our gym this month and pay no joining fee. Modern equipment, friendly trainers, classes for everyone. Sign up
online and bring a friend for free.
""")

CHINESE_ADS = _texts(
    """
春季大促销开始啦！凡在本店购买任意两件商品，即可享受第三件半价，另送精美雨伞一把，活动时间有限，欢迎到店选购。

急需用钱怎么办？凭身份证即可申请，最快五分钟到账，不看征信，额度高利息低，详情请致电客服专线。

专注少儿编程教育十年，小班授课，名师辅导，现在报名立减一千元，还可免费体验两节课，座位有限，欲报从速。

祛斑就找雅丽美容中心！纯植物配方，不伤皮肤，一个疗程见效，签约治疗，无效全额退款，预约电话见下方。

厂家批发各种规格彩钢板、角钢、镀锌管，库存充足，价格从优，支持定制，来电即享优惠，欢迎实地考察。

出国旅游特价来袭，泰国六日游仅需一千九百九十九元，含往返机票和五星酒店，本周报名再送旅行箱，咨询请加客服微信。

精装两居室，拎包入住，近地铁，月租优惠中，随时看房，中介勿扰，有意者请电话联系。

想瘦就瘦！不节食不运动不反弹，三十天轻松减掉二十斤，万千女性亲身见证，加微信领取试用装。

本店承接各类家具维修、沙发翻新业务，师傅经验丰富，上门服务，收费合理，质量有保证，欢迎拨打服务电话。

全新升级智能扫地机器人，吸力更强，噪音更低，首发价直降八百元，前一百名下单用户还送拖布套装，点击下方链接抢购。

招聘兼职打字员，在家办公，时间自由，日结工资两百至五百元，无需经验，有意请加QQ群报名。

代理记账、注册公司、商标申请，专业团队高效办理，价格透明，咨询免费，点击右侧客服即可获得报价。
""",
    "",
)

ENGLISH_OTHERS = _texts("""
The glacier has retreated almost two kilometres since measurements began, and the lake below it now threatens the
villages further down the valley.

My brother phoned late last night to say that he had missed the last train. I drove to the station through thick fog
and found him asleep on a bench.

A linked list stores each element in a node together with a reference to the next one. Inserting at the front takes
constant time, while finding an element takes linear time.

The defendant argued that the search of his flat had been unlawful. The appeal court disagreed and upheld the sentence
of eighteen months.

Mix the flour with a pinch of salt, rub in the cold butter with your fingertips, and add just enough water to bring
the pastry together.

The orchestra played the slow movement with great restraint; only in the finale did the brass section let itself go.

Photosynthesis takes place in the chloroplasts, where light energy is used to turn carbon dioxide and water into sugar
and oxygen.

Supermarkets have been accused of raising prices faster than their costs. An inquiry published on Tuesday found no
evidence of collusion between the four largest chains.

I have owned this kettle for three years. It boils quickly, but the lid has started to stick, and I wish the handle
were a little longer.

In the spring of 1912 the expedition turned back, having lost most of its dogs and all hope of reaching the pole
before winter.

To reset the password, open the configuration file, change the value of the third field, and restart the service.

He was born in a small fishing town, studied medicine in the capital, and spent most of his life treating miners.

Researchers followed nine hundred children for a decade and found only a weak link between screen time and sleep.

The shop on the corner sold newspapers and string. When its owner died, the family rented it to a shoemaker, who
stayed for forty years.

The bill would require online stores to show the total cost of an order, delivery included, before customers pay.

Let f be a continuous function on a closed interval. Then f attains its maximum, since the image of a compact set is
compact.
""")

CHINESE_OTHERS = _texts(
    """
冰川自有观测以来已经后退了近两公里，下方的湖泊如今威胁着山谷里的村庄。

昨天夜里弟弟打来电话，说他没赶上末班车，我在大雾里开车到车站，发现他在长椅上睡着了。

链表的每个节点保存一个元素和指向下一个节点的引用，在表头插入只需常数时间，而查找元素需要线性时间。

被告认为对其住所的搜查不合法，上诉法院没有采纳这一意见，维持了十八个月的刑期。

把面粉和盐拌匀，加入冷黄油搓成细粒，再倒入少许凉水揉成面团，放进冰箱冷藏半小时。

乐团对慢板乐章的处理十分克制，直到终曲铜管声部才放开手脚。

光合作用在叶绿体中进行，植物利用光能把二氧化碳和水转化为糖和氧气。

调查显示，近年来大型超市的商品价格上涨快于成本，但没有发现企业之间串通的证据。

这个水壶我用了三年，烧水很快，可是盖子开始有些卡，把手也短了一点。

一九一二年春天，探险队失去了大部分雪橇犬，只好放弃目标，掉头返回营地。

如果忘记密码，可以打开配置文件，修改第三个字段的值，然后重新启动服务。

他出生在一个小渔村，后来到省城学医，一生大部分时间都在为矿工看病。

研究人员对九百名儿童进行了十年的跟踪，发现屏幕时间与睡眠之间只有微弱的联系。

街角的小店原先卖报纸和线绳，店主去世以后，家里人把它租给了一位鞋匠，一租就是四十年。

该草案要求网上商店在消费者付款之前标明包括运费在内的总价。

设函数在闭区间上连续，则它必能取到最大值，因为紧集的连续像仍是紧集。
""",
    "",
)

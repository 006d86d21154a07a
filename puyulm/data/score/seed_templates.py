"""Templates of the made demonstration set (see `seeds`): sentences with slots, one a line.

A blank line begins another group: of advertisements a part that they have (what it is, the offer, the praise, the
hurry, the call to act), of other texts a kind of text.
"""

from __future__ import annotations


def _groups(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(group.split("\n")) for group in text.strip().split("\n\n"))


def _slots(text: str) -> dict[str, tuple[str, ...]]:
    slots: dict[str, list[str]] = {}
    for line in text.strip().split("\n"):
        name, _, values = line.partition(": ")
        slots.setdefault(name, []).extend(values.split(" | "))
    return {name: tuple(values) for name, values in slots.items()}


ENGLISH_SLOTS = _slots("""
product: mattresses | running shoes | air purifiers | kitchen knives | garden furniture | phone cases
product: skin cream | dietary supplements | LED lamps | winter jackets | coffee machines | laptop bags
product: handmade jewelry | car tires | solar panels | pet food | hearing aids | wedding dresses
service: web hosting | carpet cleaning | personal loans | debt relief | roof repair | essay writing
service: search engine marketing | dental implants | car insurance | online courses | airport transfers
service: plumbing | tax preparation | weight loss coaching | property management | moving services
service: credit repair | pest control | translation | photo editing
brand: BrightHome | Nova | our store | Casa Verde | MaxFit | BlueRiver | the Outlet Center | Lumina
day: Sunday | midnight | the end of the month | Friday | tomorrow | Black Friday | this weekend
place: Berlin | the northern coast | Ohio | Kyoto | the old town | the valley | Lagos | the Andes
person: the mayor | Dr. Ellis | my grandmother | the engineer | the committee | Professor Tan | Maria
topic: the water cycle | medieval trade | the new railway | sorting algorithms | bird migration | the treaty
topic: inflation | the novel | plate tectonics | school reform | vaccines | Baroque music
year: 1848 | 1923 | 1967 | 1991 | 2004 | 2015 | 2019
thing: the bridge | a list | the engine | the harvest | the manuscript | the river | a function
thing: the experiment | the hospital | the parser | the market | the museum
""")

ENGLISH_ADS = _groups("""
Looking for {product} at prices you will love?
Tired of paying too much for {service}?
Introducing {brand}, your one-stop shop for {product}!
Need help with {service}? We have got you covered.
Big sale at {brand}!
Attention shoppers: new {product} just arrived!
Upgrade your life with our {product}.
Welcome to {brand}, the leading supplier of {product}.
Get the best {service} in town!
Discover the secret to amazing {product}.
Want to earn extra money from home?
Best deals on {product} here!
Treat yourself to premium {product}.
Shop the new collection of {product} from {brand}.

Save up to {number}% when you order before {day}.
Now only ${number}, regular price ${number}.
Buy one, get one free on all {product}.
Use promo code SAVE{number} at checkout for an extra discount.
Free shipping on all orders over ${number}.
Get {number}% off your first purchase!
Prices start from just ${number} per month.
Enjoy a free trial for {number} days, no credit card required.
Clearance: everything must go at half price.
We offer {service} at the most affordable and lowest rates.
Receive a free gift with every purchase.
Special discounts for new customers and bulk orders.

100% satisfaction guaranteed or your money back.
Trusted by over {number},000 happy customers.
Our {product} are high quality, durable and stylish.
Our certified experts provide fast, reliable {service}.
Rated five stars by thousands of satisfied clients.
Fast delivery, easy returns and a lifetime warranty.
No contracts, no hidden fees, cancel anytime.
Lose {number} pounds in {number} days, clinically proven results!
We are a professional manufacturer of {product} with competitive price.
Instant approval, even with bad credit.
The perfect gift for your loved ones.
Fully licensed and insured, available 24/7.

Hurry, this offer ends {day}!
Limited stock available, so act fast!
Do not miss this exclusive deal.
Only {number} left in stock.
Order today while supplies last!
Sale ends {day}, shop now!

Click here to buy now.
Call us today for a free quote: 555-{number}.
Visit our website to order online.
Contact our sales team for more information and pricing.
Sign up now and start saving today!
Book your free consultation now.
Add to cart.
Message us on WhatsApp to place your order.
Subscribe to our newsletter for exclusive offers.
Follow us and share this post to win a prize!
Request a free estimate for {service} today.
Download the app and claim your bonus.
Visit our showroom in {place} or shop online at www.store{number}.com.
Schedule an appointment with us today.
""")

ENGLISH_OTHERS = _groups("""
The history of {topic} reaches back to {year}.
Scholars disagree about the causes of {topic}.
According to records from {year}, {thing} was rebuilt after a fire.
It is one of the oldest in {place}, built around {year} at a cost of ${number},000.
The population of {place} fell sharply between {year} and {year}.
Later studies of {topic} changed this view.
The price of bread rose by {number} percent during that winter.
Its name comes from a Latin word for water.
Merchants from {place} sold cloth, salt, and up to {number} tons of grain a year.
Several sources describe the event differently.

Officials in {place} said on Friday that {thing} would remain closed.
{person} declined to comment.
The company reported a loss of {number} million dollars last year.
The vote was postponed until spring.
Police have not released the names of those involved.
Critics say the plan costs too much.
The central bank left interest rates unchanged, citing {topic}.
About {number},000 residents of {place} were asked to boil water.
A spokesman for the union said the talks had failed.
Consumers spent {number}% less on clothes, cars and travel this quarter, a survey showed.

When I was young, {person} used to take me to {place}.
It rained all afternoon and we stayed inside.
She closed the door of room {number} and did not look back.
He said nothing, but his hands were shaking.
In the morning {thing} was gone.
We ate in silence and listened to the wind.
I could not sleep, so I read about {topic} until dawn.
The old man laughed and told the story again.

This chapter explains {topic} with an example.
First, make sure that {thing} is installed correctly.
If the value is missing, an error is raised.
The function returns {thing} and the number of items.
Figure {number} shows the result of the measurement.
We assume that the samples are independent.
Note that the order of the arguments matters.
See section {number} for the proof, and [{number}] for an older one.
The experiment was repeated {number} times under the same conditions.
These results agree with earlier work.

Has anyone else had this problem with {thing}?
I bought it two years ago and it broke after {number} days.
In my opinion the second season was weaker than the first.
Thanks, that fixed it for me.
I think the author misunderstands {topic}.
It depends on what you want to measure: mine showed {number} after an hour, and {number} later.
The battery is fine, but the screen is too dark and the manual is poor.
You could try asking {person} about it.
The hotel was clean, though the room was small and breakfast ended early.
I would not read it again.

Peel the onions and fry them slowly in butter.
Let the dough rest for {number} minutes.
Article {number} states that every person has the right to a fair trial.
The patient, aged {number}, was given antibiotics for {number} days.
Plants need light, water and carbon dioxide to grow.
Wash your hands before you treat the wound.
The teacher asked the class to write about {topic}.
Children under twelve must be accompanied by an adult.
The court found that the contract was not valid.
Bees visit the flowers early in the morning.

The factory near {place} made {product} until {year}, when it was closed.
A tax on {product} was introduced in {year} and soon abolished.
The survey found that {number} percent of households own {product}.
{person} wrote a long letter about {product} and the people who made them.
There is little evidence that {product} or {service} make people happier.
The minister promised stricter rules for {service} after several complaints.
Thieves broke into a warehouse and took {number} boxes of {product}.
Before {year} hardly anyone in {place} had heard of {service}.
My uncle worked in {service} for {number} years, and he hated every day of it.
The word for {product} has changed its meaning since {year}.
Exports of {product} fell, while those of copper and wool rose.
A court fined the firm, {brand}, for misleading claims about {service}.

You can change your settings later; for now, leave the form as it is.
If your answer is no, go on to question {number}; in order to finish, press Enter.
Call the function again only after you free the memory that it holds.
Our understanding of {topic} has improved, but we still know too little.
We offer no explanation here and refer our readers to the literature.
Now suppose that the best case occurs: then the order of the items is unchanged.
Please read the whole text before you write down your thoughts on {topic}.
Get enough sleep, drink water, and see your doctor if the pain gets worse.
For more information on {topic}, see the book by {person}.
In today's lesson we learn how {thing} works and why it sometimes fails.
Visitors may enter {thing} from nine to five; dogs are not allowed.
What would you do if you had only one day left in {place}?
""")

CHINESE_SLOTS = _slots("""
product: 床垫 | 运动鞋 | 空气净化器 | 面膜 | 保健品 | 实木家具 | 手机壳 | 茶叶 | 水泵 | 不锈钢管 | 羽绒服
product: 净水器 | 白酒 | 翡翠手镯 | 打印机耗材 | 电动车 | 防盗门 | 奶粉 | 太阳能热水器 | 塑料托盘
service: 小额贷款 | 网站建设 | 搬家 | 代办公司注册 | 考研培训 | 英语口语培训 | 装修设计 | 植发 | 种植牙
service: 减肥瘦身 | 房屋出租 | 信用卡代还 | 论文代写 | 管道疏通 | 二手车收购 | 旅游跟团 | 月嫂服务 | 股票推荐
brand: 本店 | 我司 | 鑫源 | 美佳 | 宏达 | 康乐 | 优选商城 | 旗舰店
day: 本周日 | 月底 | 今晚十二点 | 国庆期间 | 双十一 | 明天
place: 长江沿岸 | 洛阳 | 青海 | 柏林 | 村子里 | 岭南 | 京都 | 黄土高原
person: 县长 | 李教授 | 祖母 | 工程师 | 委员会 | 王医生 | 小明 | 老师
topic: 水循环 | 唐代诗歌 | 丝绸之路 | 排序算法 | 候鸟迁徙 | 通货膨胀 | 这部小说 | 板块运动 | 义务教育 | 疫苗
year: 1848年 | 1923年 | 1967年 | 1991年 | 2004年 | 2015年 | 2019年
thing: 这座桥 | 列表 | 发动机 | 收成 | 手稿 | 河水 | 函数 | 实验 | 医院 | 市场 | 博物馆
""")

CHINESE_ADS = _groups("""
还在为{service}发愁吗？
想买{product}？来{brand}就对了！
{brand}专业生产{product}，厂家直销，质优价廉。
{brand}新品上市，{product}全场特价！
专业{service}，一站式解决您的烦恼。
重磅推出{product}，限时抢购！
高品质{product}批发零售，欢迎选购。
{service}哪家好？当然选{brand}！
诚招全国{product}代理商，加盟热线等你来。
在家就能赚钱，日赚{number}元不是梦！
旺铺招租，黄金地段，投资首选。
本公司长期供应{product}，规格齐全。

原价{number}元，现在只要{number}元！
全场{product}买一送一，满{number}减{number}。
{day}前下单立享八折优惠。
全国包邮，货到付款。
新用户注册即送{number}元红包。
免费试听，满意再交费。
优惠多多，赠送精美礼品。
批发价格，量大从优。
首付仅需{number}元，轻松拥有。
前{number}名顾客免费领取体验装。
无抵押，当天放款，利息低。

正品保证，假一赔十。
七天无理由退换，售后无忧。
已有{number}万用户选择我们。
技术力量雄厚，信誉第一，质量至上。
{number}天见效，无效退款。
资深团队，一对一贴心服务。
深受广大新老客户的一致好评。
品质卓越，送礼自用两相宜。
包过包会，签订协议，不过退费。
采用进口材料，经久耐用，款式新颖。

数量有限，先到先得！
活动仅限{day}，错过再等一年！
名额有限，赶快行动吧！
最后{number}件，抢完为止。
机会难得，千万不要错过。

咨询热线：400-{number}-{number}，欢迎来电咨询。
加微信{number}了解详情。
扫描二维码关注公众号领取优惠券。
点击链接立即购买。
点击在线客服免费咨询。
欢迎新老客户前来洽谈订购。
联系人：王经理，手机同微信。
登录官网预约报名。
地址：人民路{number}号，期待您的光临。
私信客服领取报价单。
下载APP领取新人大礼包。
转发朋友圈即可参加抽奖。
QQ：{number}，诚信合作，非诚勿扰。
""")

CHINESE_OTHERS = _groups("""
{topic}的历史可以追溯到{year}。
学者对{topic}的成因看法不一。
据史料记载，{thing}曾在火灾后重建。
{place}的人口在战乱中大幅减少，到{year}只剩下{number}万人。
后来的研究改变了这一看法。
当年冬天粮价上涨了百分之{number}。
商人从{place}运来布匹，换取粮食和盐。
这个名称来源于当地的一条河。
不同文献的记载互有出入，有的说是{year}，有的说是{year}。

{place}有关部门昨天表示，{thing}将继续关闭。
{person}没有对此作出回应。
公司去年亏损{number}亿元。
会议推迟到明年春天举行，预计有{number}人参加，会期{number}天。
警方尚未公布有关人员的姓名。
批评者认为这项计划花费太大。
中央银行宣布利率维持不变。
第三季度，居民在服装、汽车、旅游方面的消费下降了百分之{number}。
记者在现场看到，救援工作仍在进行。

小时候，{person}常带我去{place}，一住就是{number}天。
雨下了一个下午，我们哪儿也没去。
她关上门，没有回头。
他什么也没说，手却在发抖。
第二天早上，{thing}已经不见了。
我们默默地吃饭，听着窗外的风声。
我睡不着，读关于{topic}的书直到天亮。
老人笑了笑，又把那个故事讲了一遍。

本章通过一个例子说明{topic}。
首先确认{thing}已经正确安装。
如果缺少这个值，就会引发错误。
该函数返回{thing}和元素的个数。
图{number}给出了测量的结果。
假设各样本相互独立。
注意参数的顺序不能颠倒。
证明见第{number}节，更早的证明见文献{number}。
在相同条件下重复实验{number}次。
这些结果与前人的工作一致。

有没有人遇到过同样的问题？
我两年前买的，用了{number}天就坏了。
我觉得第二季不如第一季。
谢谢，按你说的改好了。
作者似乎误解了{topic}。
这要看你想测量什么，我测出来一次是{number}，一次是{number}。
电池还行，就是屏幕太暗，说明书也写得不好。
你可以问问{person}。
酒店很干净，但是房间有点小，早餐结束得太早。
这本书我不会再读第二遍。
价格有点贵，送货倒是很快，总体一般。

洋葱去皮切丝，用小火慢慢炒软。
面团静置{number}分钟。
第{number}条规定，任何人都有权获得公正的审判。
病人今年{number}岁，医生给他开了抗生素，每天{number}毫克。
植物生长需要阳光、水和二氧化碳。
处理伤口之前要先洗手。
老师让全班写一篇关于{topic}的作文。
法院认定该合同无效。
清晨，蜜蜂飞到花丛中采蜜。
春江潮水连海平，海上明月共潮生。

{place}附近的工厂从前生产{product}，{year}停产了。
调查显示，百分之{number}的家庭拥有{product}。
{person}写过一篇长文，讲{product}和做{product}的人。
没有证据表明{product}或者{service}能让人更幸福。
接到多起投诉以后，主管部门决定加强对{service}行业的监管。
小偷闯进仓库，搬走了{number}箱{product}。
在{year}以前，{place}几乎没有人听说过{service}。
我叔叔干了{number}年{service}，没有一天是高兴的。
{product}出口下降，铜和羊毛的出口有所上升。
法院认定{brand}关于{service}的宣传有误导，判处罚款。
{year}开征的{product}税不久就废除了。

您可以以后再修改设置，现在先保持不变。
如果回答“否”，请直接跳到第{number}题；完成以后按回车键。
释放内存之前不要再次调用这个函数。
我们对{topic}的认识有所提高，但所知仍然有限。
现在假设出现最好的情况，那么各项的次序不变。
请先通读全文，再写下你对{topic}的看法。
保证睡眠，多喝水，如果疼痛加重，应及时去看医生。
关于{topic}的更多内容，可以参看{person}的著作。
今天这节课我们学习{thing}是怎样工作的，又为什么会出错。
参观时间为上午九点至下午五点，禁止携带宠物入内。
如果在{place}只剩下最后一天，你会做什么？
他拿起电话，想了想，又放下了，一直等到天黑。
""")

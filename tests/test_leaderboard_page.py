"""The page in a real browser: sorting, filtering, plots, and no word to any network."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import records

from suite.leaderboard import page
from suite.leaderboard.ranking import boards
from suite.leaderboard.records import collect

webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason='no chromium with chromedriver: apt-get install chromium chromium-driver')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A page of two protocols with real data and one mini one."""
    root = tmp_path_factory.mktemp('leaderboard')
    records.matrix(root / 'real', mini=False, seeds=3)
    shutil.rmtree(root / 'real' / 'swin_tiny')
    for seed, score in enumerate((.60, .61, .62)):
        records.write(root / 'swin' / str(seed), seed=seed, backbone='swin_best', metrics={
            'coco/bbox_mAP': score, 'coco/segm_mAP': .1})
    records.write(root / 'slow', backbone='swin_slow', images_per_second=None, macs=None,
                  metrics={'coco/bbox_mAP': .2, 'coco/segm_mAP': .45})
    records.write(root / 'mini', mini=True, backbone='swin_small')
    records.write(root / 'bad', status='failed', error='no disk')
    counted, left_out = collect([root])
    (root / 'leaderboard.html').write_text(page.render(boards(counted), left_out, root))
    return root


@pytest.fixture(scope='module')
def browser(tmp_path_factory, folder):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ('headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run',
                 'disable-background-networking', 'disable-component-update', 'disable-sync',
                 'window-size=1400,1200', f'user-data-dir={tmp_path_factory.mktemp("profile")}'):
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', dict(performance='ALL', browser='ALL'))
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    # What chromium asks for before, its own start page, is not the page's doing.
    driver.get('about:blank')
    driver.get_log('performance')
    driver.get((folder / 'leaderboard.html').as_uri())
    yield driver
    driver.quit()


@pytest.fixture
def shown(browser):
    """The page as it opens."""
    browser.execute_script('''
        for (const form of document.forms) form.reset();
        for (const choice of document.querySelectorAll('.metric, #group'))
          choice.dispatchEvent(new Event('change'));''')
    return browser


def board(shown):
    return next(section for section in shown.find_elements(By.CSS_SELECTOR, 'section.board')
                if section.is_displayed())


def choose(shown, words: str) -> None:
    group = Select(shown.find_element(By.ID, 'group'))
    group.select_by_visible_text(next(option.text for option in group.options
                                      if words in option.text))


def column(shown, title: str, section=None) -> list[str]:
    """Texts of a column's visible cells, from the top."""
    return shown.execute_script('''
        const table = arguments[0].querySelector('table');
        const place = [...table.tHead.rows[0].cells].findIndex(
            head => head.textContent.trim() === arguments[1]);
        return [...table.tBodies[0].rows].filter(row => !row.hidden)
            .map(row => row.cells[place].textContent.trim());''', section or board(shown), title)


def press(shown, title: str) -> str:
    """Click a header; returns what it says of the order to those who cannot see it."""
    button = next(button for button in board(shown).find_elements(By.CSS_SELECTOR, 'th button')
                  if button.text == title)
    button.click()
    return button.find_element(By.XPATH, '..').get_attribute('aria-sort')


def test_it_needs_no_network_and_makes_no_error(shown):
    for group in ('MINI', 'not ranked', 'upernet_kumar'):
        choose(shown, group)
    asked = [message['params']['request']['url'] for message in (
        json.loads(entry['message'])['message'] for entry in shown.get_log('performance'))
        if message['method'] == 'Network.requestWillBeSent']
    assert [url.partition(':')[0] for url in asked if not url.startswith('data:')] == ['file']
    assert shown.get_log('browser') == []


def test_headers_sort_by_number_both_ways(shown):
    assert press(shown, 'parameters, M') == 'ascending'
    sizes = [float(text) for text in column(shown, 'parameters, M')]
    assert len(sizes) == 23 and sizes == sorted(sizes)
    assert press(shown, 'parameters, M') == 'descending'
    assert [float(text) for text in column(shown, 'parameters, M')] == sizes[::-1]
    for direction in ('descending', 'ascending'):
        assert press(shown, 'images/s') == direction
        *speeds, last = column(shown, 'images/s')
        assert last == '-'
        numbers = [float(text.replace(',', '')) for text in speeds]
        assert numbers == sorted(numbers, reverse=direction == 'descending')
        assert speeds != sorted(speeds, reverse=direction == 'descending')  # nor as text
    assert press(shown, 'backbone') == 'ascending'
    names = column(shown, 'backbone')
    assert names == sorted(names)


def test_filters_narrow_rows(shown):
    words = shown.find_element(By.ID, 'filter')
    count = shown.find_element(By.ID, 'count')
    assert count.text == '23 of 23 rows'
    words.send_keys('swin')
    assert sorted(column(shown, 'backbone')) == ['swin_best', 'swin_slow', 'visformer_swin_tiny_v2']
    Select(shown.find_element(By.ID, 'family')).select_by_visible_text('Swin')
    assert sorted(column(shown, 'backbone')) == ['swin_best', 'swin_slow']
    words.send_keys(' BEST')
    assert column(shown, 'backbone') == ['swin_best']
    assert count.text == '1 of 23 rows'
    published = shown.find_element(By.ID, 'published')
    assert 'None is known for this group.' in published.text


def test_groups_and_what_is_published_beside_them(shown):
    published = shown.find_element(By.ID, 'published')
    assert set(column(shown, 'head', published)) == {'Mask R-CNN'}
    assert 'box mAP' in published.text and 'mIoU' not in published.text
    choose(shown, 'upernet_ade20k: 12 epochs, batch 16, pre-training')
    assert set(column(shown, 'dataset', published)) == {'ADE20K'}
    assert len(column(shown, 'mIoU')) == 21
    choose(shown, 'MINI')
    assert 'synthetic data: says that a protocol learns' in board(shown).text
    assert not board(shown).find_elements(By.CSS_SELECTOR, '.show-published')
    choose(shown, 'not ranked')
    assert 'rank' not in [head.text for head in board(shown).find_elements(By.TAG_NAME, 'th')]
    assert len(column(shown, 'backbone')) == 23 + 21 + 21 + 3 * 4 + 1
    shown.find_element(By.ID, 'filter').send_keys('mini')
    assert column(shown, 'protocol') == ['maskrcnn_coco (MINI)']
    assert 'bad/record.json: failed: no disk' in shown.find_element(By.ID, 'left-out').text


def test_the_best_are_first_and_linked_to_their_records(shown, folder):
    assert column(shown, 'rank')[:3] == ['1', '2', '3']
    assert column(shown, 'backbone')[0] == 'swin_best'
    assert column(shown, 'records by seed')[0] == '0, 1, 2'
    links = board(shown).find_elements(By.CSS_SELECTOR, 'tbody tr:first-child a')
    assert [link.get_attribute('href') for link in links] == [
        (folder / 'swin' / str(seed) / 'record.json').as_uri() for seed in range(3)]


def test_another_metric_ranks_and_plots_anew(shown):
    Select(board(shown).find_element(By.CSS_SELECTOR, '.metric')).select_by_visible_text('mask mAP')
    assert column(shown, 'backbone')[0] == 'swin_slow' and column(shown, 'rank')[0] == '1'
    assert column(shown, 'backbone')[-1] == 'swin_best'
    title = shown.execute_script("return arguments[0].querySelector('.ytitle').textContent",
                                 board(shown))
    assert title == 'mask mAP, %'


def point(shown, axis: int, name: str) -> tuple:
    """The plot of an axis, and a point of it in pixels from its top left."""
    plot = board(shown).find_elements(By.CSS_SELECTOR, '.plot')[axis]
    x, y = shown.execute_script('''
        const [plot, name] = arguments, { xaxis, yaxis } = plot._fullLayout;
        for (const trace of plot.data) {
          const at = (trace.hovertext ?? []).findIndex(text => text.includes(name));
          if (at >= 0) return [xaxis._offset + xaxis.d2p(trace.x[at]),
                               yaxis._offset + yaxis.d2p(trace.y[at])];
        }''', plot, name)
    return plot, x, y


HOVERS = [
    (0, 'hornet_tiny_7x7', ['box mAP', 'MACs (G): 256.0', '800 x 1280']),
    (1, 'swin_best', ['box mAP 61.00 ± 1.00 (3 seeds)', 'parameters (M): 47.80']),
    (2, 'maxvit_tiny', ['images/s in training: ', '8 x NVIDIA H200, bfloat16 autocast']),
    (0, 'MogaNet small', ['(published)', 'box mAP 46.6', '271.6 at 800x1280',
                          'README and detection/README.md of Westlake-AI/MogaNet'])]


def test_hovering_names_the_system(shown):
    for axis, name, words in HOVERS:
        plot, x, y = point(shown, axis, name)
        shown.execute_script('arguments[0].scrollIntoView({block: "center"})', plot)
        size = plot.size
        ActionChains(shown).move_to_element_with_offset(
            plot, round(x - size['width'] / 2), round(y - size['height'] / 2)).perform()
        label = WebDriverWait(shown, 10).until(lambda _: shown.execute_script(
            "const label = arguments[0].querySelector('.hovertext')?.textContent;"
            'return label?.startsWith(arguments[1]) && label', plot, name), name)  # noqa: B023
        for part in words:
            assert part in label


def test_published_points_can_be_hidden_and_none_is_on_the_front(shown):
    names = '''return arguments[0].data.filter(trace => trace.hovertext)
        .map(trace => [trace.name, trace.marker.symbol, trace.hovertext.length])'''
    plot = board(shown).find_element(By.CSS_SELECTOR, '.plot')
    published, measured = shown.execute_script(names, plot)
    assert published[:2] == ['published', 'diamond-open'] and published[2] > 10
    assert measured[0] == '800 x 1280' and measured[2] == 22
    front = shown.execute_script(
        "return arguments[0].data.find(trace => trace.mode === 'lines').y", plot)
    assert max(front) == pytest.approx(61.)
    board(shown).find_element(By.CSS_SELECTOR, '.show-published').click()
    assert [name for name, *_ in shown.execute_script(names, plot)] == ['800 x 1280']

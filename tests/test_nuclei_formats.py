"""Reading what data sets of nuclei distribute, and saying what is wrong with it."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from histology import formats
from histology.errors import DataError
from histology.formats import read_image, read_mat, read_xml, write_mat

LABELS = np.array([[0, 1, 1, 0], [0, 0, 1, 2], [3, 3, 0, 2]])
COLOURS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def save(path, pixels) -> None:
    assert cv2.imwrite(str(path), pixels[..., [2, 1, 0, *range(3, pixels.shape[-1])]]
                       if pixels.ndim == 3 else pixels)


def complaint(read, *arguments) -> str:
    with pytest.raises(DataError) as error:
        read(*arguments)
    assert '\n' not in str(error.value)
    return str(error.value)


# Images

@pytest.mark.parametrize('suffix', ['.png', '.tif', '.bmp'])
def test_colours_come_as_they_are(tmp_path, suffix):
    save(tmp_path / f'a{suffix}', COLOURS)
    pixels, notes = read_image(tmp_path / f'a{suffix}')
    assert np.array_equal(pixels, COLOURS) and notes == {}


def test_alpha_is_dropped_and_16_bits_become_8(tmp_path):
    alpha = np.full((30, 40, 1), 100, np.uint8)
    save(tmp_path / 'a.png', np.concatenate([COLOURS, alpha], 2))
    pixels, notes = read_image(tmp_path / 'a.png')
    assert np.array_equal(pixels, COLOURS) and notes == {'alpha channel, dropped': ''}
    for name in ('deep.png', 'deep.tif'):
        save(tmp_path / name, COLOURS.astype(np.uint16) * 256 + 255)
        pixels, notes = read_image(tmp_path / name)
        assert np.array_equal(pixels, COLOURS)
        assert notes == {'16 bits per channel, reduced to 8': ''}


def test_a_palette_means_its_colours(tmp_path):
    Image.fromarray(COLOURS // 128 * 255).quantize(8).save(tmp_path / 'a.png')
    assert np.array_equal(read_image(tmp_path / 'a.png')[0], COLOURS // 128 * 255)


def test_images_that_are_none_are_named(tmp_path, capfd):
    save(tmp_path / 'dark.png', COLOURS.astype(np.uint16) * 16)
    assert f'{tmp_path}/dark.png has uint16 values up to' in complaint(
        read_image, tmp_path / 'dark.png')
    save(tmp_path / 'grey.png', COLOURS[..., 0])
    assert 'grey.png is grey' in complaint(read_image, tmp_path / 'grey.png')
    (tmp_path / 'empty.png').touch()
    assert 'empty.png is empty (0 bytes)' in complaint(read_image, tmp_path / 'empty.png')
    assert 'cannot read' in complaint(read_image, tmp_path / 'absent.png')
    for suffix in ('.png', '.tif'):
        save(tmp_path / f'a{suffix}', COLOURS)
        content = (tmp_path / f'a{suffix}').read_bytes()
        (tmp_path / f'cut{suffix}').write_bytes(content[:len(content) * 2 // 3])
        assert f'cut{suffix} is truncated or' in complaint(read_image, tmp_path / f'cut{suffix}')
    assert capfd.readouterr().err == ''


# .mat

def test_what_is_written_is_read(tmp_path):
    write_mat(tmp_path / 'a.mat', LABELS)
    labels, types, notes = read_mat(tmp_path / 'a.mat')
    assert labels.dtype == np.int32 and np.array_equal(labels, LABELS)
    assert types is None and notes == {}


def test_types_and_centroids_are_those_of_consep(tmp_path):
    write_mat(tmp_path / 'a.mat', LABELS.astype(float) * 2, [3, 1, 7])
    arrays = loadmat(tmp_path / 'a.mat')
    assert arrays['inst_map'].dtype == np.float64
    assert arrays['inst_type'].tolist() == [[3], [1], [7]]
    assert arrays['type_map'].tolist() == [[0, 3, 3, 0], [0, 0, 3, 1], [7, 7, 0, 1]]
    assert np.allclose(arrays['inst_centroid'], [[5 / 3, 1 / 3], [3, 1.5], [0.5, 2]])
    labels, types, notes = read_mat(tmp_path / 'a.mat')
    assert np.array_equal(labels, LABELS) and types.tolist() == [3, 1, 7]
    assert notes == {'gaps between ids, renumbered': '', 'ids stored as floats': ''}


def test_the_same_content_makes_the_same_file(tmp_path):
    for name in 'ab':
        write_mat(tmp_path / f'{name}.mat', LABELS, [1, 2, 3])
    content = (tmp_path / 'a.mat').read_bytes()
    assert content == (tmp_path / 'b.mat').read_bytes() and b'Created' not in content


@pytest.mark.parametrize('labels, count, notes', [
    (np.zeros((3, 4), np.uint8), 0, {'no nuclei'}),
    (LABELS == 2, 1, set()),
    (np.where(LABELS == 3, 70000, LABELS), 3,
     {'gaps between ids, renumbered', 'ids above 65535, renumbered'}),
    (np.full((3, 4), 5.0), 1, {'gaps between ids, renumbered', 'ids stored as floats'})])
def test_odd_maps_are_taken_with_a_note(tmp_path, labels, count, notes):
    savemat(tmp_path / 'a.mat', dict(inst_map=labels, inst_type=np.ones((count, 1))))
    found, types, said = read_mat(tmp_path / 'a.mat')
    assert found.max() == count == len(np.unique(found[found > 0])) == len(types)
    assert np.array_equal(found > 0, labels > 0) and set(said) == notes


def test_a_nucleus_has_the_type_of_most_of_its_pixels(tmp_path):
    drawn = np.array([[0, 2, 2, 0], [0, 0, 4, 1], [5, 5, 0, 1]])
    savemat(tmp_path / 'a.mat', dict(inst_map=LABELS, type_map=drawn, inst_type=[[2], [1], [6]]))
    _, types, notes = read_mat(tmp_path / 'a.mat')
    assert types.tolist() == [2, 1, 5]
    assert set(notes) == {'nuclei of more than one type, given that of most pixels',
                          'inst_type contradicts type_map, which was taken'}


def test_labels_that_are_none_are_named(tmp_path):
    def said(**arrays) -> str:
        savemat(tmp_path / 'a.mat', arrays)
        line = complaint(read_mat, tmp_path / 'a.mat')
        assert line.startswith(f'label {tmp_path}/a.mat')
        return line

    assert 'lacks inst_map, the map of instances (it holds mask, other)' in said(mask=1, other=2)
    assert 'inst_map is <U4 of 1' in said(inst_map='nope')
    assert 'of 2 x 3 x 4; it must have one id per pixel' in said(inst_map=np.ones((2, 3, 4)))
    for value, shown in ((-1, '-1'), (1.5, '1.5'), (np.nan, 'nan'), (np.inf, 'inf')):
        assert f'inst_map has the value {shown}; ids are whole' in said(
            inst_map=np.where(LABELS == 2, value, LABELS))
    assert 'inst_type lists 2 nuclei, inst_map has 3' in said(inst_map=LABELS, inst_type=[1, 2])
    assert 'type_map is 1 x 3, inst_map 3 x 4 pixels' in said(inst_map=LABELS, type_map=[1, 2, 3])
    many = np.arange(256 * 257).reshape(256, 257)
    assert 'has 65791 nuclei; an instance map holds 65535' in said(inst_map=many)


def test_files_that_are_no_mat_are_named(tmp_path):
    write_mat(tmp_path / 'a.mat', np.arange(3000).reshape(50, 60))
    content = (tmp_path / 'a.mat').read_bytes()
    for bad in (content[:len(content) // 2], b'a text', content[:200]):
        (tmp_path / 'bad.mat').write_bytes(bad)
        assert 'bad.mat is truncated or no MATLAB file' in complaint(
            read_mat, tmp_path / 'bad.mat')
    (tmp_path / 'bad.mat').write_bytes(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\0\2IM' + b'\0' * 400)
    assert 'is a MATLAB 7.3 file; save it with -v7' in complaint(read_mat, tmp_path / 'bad.mat')
    (tmp_path / 'bad.mat').write_bytes(b'')
    assert 'bad.mat is empty (0 bytes)' in complaint(read_mat, tmp_path / 'bad.mat')


# .xml

def xml(path, *regions) -> None:
    path.write_text('<?xml version="1.0"?><Annotations MicronsPerPixel="0.25"><Annotation><Regions>'
                    + ''.join(f'<Region Id="{number}"><Vertices>' + ''.join(
                        f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
                        + '</Vertices></Region>' for number, points in enumerate(regions, 1))
                    + '</Regions></Annotation></Annotations>')


def test_a_pixel_belongs_to_the_polygon_around_its_centre(tmp_path):
    xml(tmp_path / 'a.xml', [(0.6, 0.6), (3.4, 0.6), (3.4, 2.4), (0.6, 2.4)])
    labels, types, notes = read_xml(tmp_path / 'a.xml', (5, 6))
    assert labels.tolist() == [[0] * 6, [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 6, [0] * 6]
    assert labels.dtype == np.int32 and types is None and notes == {}


def test_outlines_agree_with_rounded_ones_within_a_pixel(tmp_path):
    rng = np.random.default_rng(1)
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for _ in range(20):
        radius = rng.uniform(6, 15) * (1 + 0.1 * np.cos(2 * turn + 1) + 0.05 * np.cos(5 * turn))
        points = np.stack([30 + radius * np.cos(turn), 25 + radius * np.sin(turn)], 1)
        xml(tmp_path / 'a.xml', points)
        found = read_xml(tmp_path / 'a.xml', (50, 60)).labels.astype(np.uint8)
        # HoVer-Net's converter: add a half, truncate, fill with OpenCV.
        theirs = np.zeros((50, 60), np.uint8)
        cv2.fillPoly(theirs, [np.int32(points + 0.5)], 1)
        around = np.ones((3, 3), np.uint8)
        assert (found <= cv2.dilate(theirs, around)).all()
        assert (found >= cv2.erode(theirs, around)).all() and found.sum() > 100


def test_a_small_nucleus_stays_in_front_of_a_large_one(tmp_path):
    small, large = [(4, 4), (8, 4), (8, 8), (4, 8)], [(1, 1), (15, 1), (15, 15), (1, 15)]
    for regions in ((small, large), (large, small)):
        xml(tmp_path / 'a.xml', *regions)
        labels, _, notes = read_xml(tmp_path / 'a.xml', (20, 20))
        number = 1 + regions.index(small)
        assert labels[6, 6] == number and labels[12, 12] == 3 - number and notes == {}


def test_regions_that_are_none_are_left_out_with_a_note(tmp_path):
    square = [(4, 4), (8, 4), (8, 8), (4, 8)]
    outside = [(40, 40), (48, 40), (48, 48), (40, 48)]
    xml(tmp_path / 'a.xml', [(1, 1), (3, 3)], square, outside, [], [(0, 0), (2, 0), (2, 2), (0, 2)])
    labels, _, notes = read_xml(tmp_path / 'a.xml', (20, 20))
    assert labels[6, 6] == 1 and labels[1, 1] == labels.max() == 2
    assert notes == {'regions of fewer than 3 points, left out': 'region 1, 4',
                     'regions without a pixel of their own, left out': 'region 3'}
    xml(tmp_path / 'a.xml')
    assert read_xml(tmp_path / 'a.xml', (20, 20)).notes == {'no nuclei': ''}


def test_xml_that_is_none_is_named(tmp_path):
    path = tmp_path / 'a.xml'
    xml(path, [(1, 1), (3, 3), (1, 3)])
    text = path.read_text()
    path.write_text(text[:-20])
    assert 'a.xml is truncated or no XML (' in complaint(read_xml, path, (9, 9))
    path.write_text('<html/>')
    assert "its root is 'html', not 'Annotations'" in complaint(read_xml, path, (9, 9))
    for bad in (text.replace('X="3"', ''), text.replace('X="3"', 'X="a"'),
                text.replace('X="3"', 'X="nan"')):
        path.write_text(bad)
        assert 'region 1 has a vertex without X and Y' in complaint(read_xml, path, (9, 9))
    assert formats.MOST == 65535

import t from 'tap'
import { isBelow, resolvedAddress, schemeOf, shownAddress } from '../../src/sources/address.js'

t.test('a path is no address', async t => {
  for (const path of ['/a/b', 'disk.qcow2', 'http:x', 'C:\\x', './http://x', '']) {
    t.equal(schemeOf(path), undefined, path)
    t.equal(shownAddress(path), path)
  }
  t.equal(schemeOf('HTTPS://h/x'), 'https')
})

t.test('what is shown has no password and no query', async t => {
  t.equal(shownAddress('https://me:secret@h:8/a/b.qcow2?sig=key#x'), 'https://h:8/a/b.qcow2')
  t.equal(shownAddress('https://a@b:c@h/x'), 'https://h/x')
  t.equal(shownAddress('https://me:p@ss@h'), 'https://h')
  t.equal(shownAddress('https://h?key'), 'https://h')
})

t.test('relative names lie beside the image, without its query', async t => {
  const by = 'https://h/a/top.qcow2?sig=key'
  t.equal(resolvedAddress('base.qcow2', by), 'https://h/a/base.qcow2')
  t.equal(resolvedAddress('sub/base 1#?.qcow2', by), 'https://h/a/sub/base%201%23%3F.qcow2')
  t.equal(resolvedAddress('../base', by), 'https://h/base')
  t.equal(resolvedAddress('http://other/x', by), 'http://other/x')
})

t.test('an address lies below a prefix only at the same origin', async t => {
  const folder = 'https://h/a/'
  t.ok(isBelow('https://h/a/x', folder))
  t.ok(isBelow('https://h/a/b/x', folder))
  t.ok(isBelow('https://h/a', 'https://h/a'))
  for (const other of [
    'https://h/ab/x',
    'https://h/x',
    'http://h/a/x',
    'https://h:444/a/x',
    'https://h.evil/a/x',
    'https://h/a/../x',
    'https://h/a/%2e%2e/x',
    'https://h/a/..%2fx',
    'file:///a/x',
    'x',
  ]) {
    t.notOk(isBelow(other, folder), other)
  }
  t.notOk(isBelow('https://h/ab', 'https://h/a'))
})

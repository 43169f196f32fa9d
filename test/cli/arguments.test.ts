import t from 'tap'
import { parseChoice, parseCount, parseSize } from '../../src/cli/arguments.js'

t.test('sizes', async t => {
  const cases: [string, number][] = [
    ['0', 0],
    ['1', 1],
    ['64k', 65536],
    ['32M', 32 * 2 ** 20],
    ['32m', 32 * 2 ** 20],
    ['32MB', 32 * 2 ** 20],
    ['32MiB', 32 * 2 ** 20],
    ['1G', 2 ** 30],
    ['8000000G', 8_000_000 * 2 ** 30],
  ]
  for (const [text, bytes] of cases) t.equal(parseSize(text, '--size'), bytes, text)
  for (const text of [
    '',
    'M',
    '-1',
    '1.5G',
    '1T',
    '0x10',
    '1 M',
    '9000000G',
    '9'.repeat(16),
    '1e3',
  ]) {
    const message = `--size takes a size such as 32M or 1G, not "${text}"`
    t.throws(() => parseSize(text, '--size'), { name: 'UsageError', message }, text)
  }
})

t.test('counts', async t => {
  for (const text of ['1', '64', '007']) t.equal(parseCount(text, '--n', 1, 64), Number(text))
  for (const text of ['', '0', '65', '-1', '1.5', '1e1', '0x1', ' 1', '9'.repeat(20)]) {
    const message = `--n takes a number from 1 to 64, not "${text}"`
    t.throws(() => parseCount(text, '--n', 1, 64), { name: 'UsageError', message }, text)
  }
})

t.test('choices', async t => {
  t.equal(parseChoice('json', '--output', ['human', 'json']), 'json')
  const message = '--output takes human, json, not "JSON"'
  t.throws(() => parseChoice('JSON', '--output', ['human', 'json']), {
    name: 'UsageError',
    message,
  })
})

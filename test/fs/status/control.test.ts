import t from 'tap'
import { TextSlots } from '../../../src/fs/status/control.js'

t.test('a text stays until fifteen more are put', async t => {
  const slots = new TextSlots()
  const first = slots.put('first')
  for (let i = 0; i < 15; i++) {
    t.equal(slots.get(first).toString(), 'first')
    slots.put(`text ${i}`)
  }
  slots.put('sixteenth')
  t.equal(slots.get(first).toString(), 'sixteenth')
})

t.test('threads see the texts of each other', async t => {
  const ours = new TextSlots()
  const theirs = new TextSlots(ours.shared)
  const slots = [ours.put('one'), theirs.put('two'), ours.put('three')]
  t.equal(new Set(slots).size, 3)
  t.same(
    slots.map(slot => theirs.get(slot).toString()),
    ['one', 'two', 'three'],
  )
})

t.test('texts of any length', async t => {
  const slots = new TextSlots()
  const [empty, long, after] = [slots.put(''), slots.put('ü'.repeat(20_000)), slots.put('after')]
  t.equal(slots.get(empty).length, 0)
  t.equal(slots.get(long).length, 16384, 'cut, and no neighbour is touched')
  t.equal(slots.get(after).toString(), 'after')
})

t.test('handles that the kernel made up', async t => {
  const slots = new TextSlots()
  slots.put('text')
  for (const slot of [16, 2 ** 31, 2 ** 32 - 16])
    t.equal(slots.get(slot).toString(), 'text', `${slot}`)
  t.equal(slots.get(5).length, 0)
})

/** Which process has a file open for writing: real processes, and what /proc may lack. */
import { closeSync, mkdirSync, openSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { mayHoldForWriting } from '../../../src/fs/mounting/file-holders.js'

const INO = 16

t.test('this process', async t => {
  const file = join(t.testdir(), 'file')
  writeFileSync(file, '')
  const { ino } = statSync(file)
  const holds = () => mayHoldForWriting(process.pid, ino)
  t.notOk(holds())
  const reading = openSync(file, 'r')
  t.notOk(holds(), 'reading')
  const writing = openSync(file, 'a')
  t.ok(holds(), 'writing')
  closeSync(writing)
  t.notOk(holds(), 'closed')
  closeSync(reading)
})

t.test('a file whose holders cannot be seen counts as held', async t => {
  const folder = (descriptors: readonly string[], self = String(process.pid)) => {
    const proc = t.testdir()
    symlinkSync(self, join(proc, 'self'))
    mkdirSync(join(proc, '7', 'fdinfo'), { recursive: true })
    descriptors.forEach((text, fd) => {
      writeFileSync(join(proc, '7', 'fdinfo', String(fd)), text)
    })
    return proc
  }
  const other = `pos:\t0\nflags:\t0100002\nmnt_id:\t24\nino:\t${INO + 1}\n`
  t.notOk(mayHoldForWriting(7, INO, folder([other])))
  t.ok(mayHoldForWriting(7, INO, folder([other, other.replace(/\d+\n$/, `${INO}\n`)])))
  t.ok(mayHoldForWriting(7, INO, folder(['pos:\t0\nflags:\t02\nmnt_id:\t24\n'])), 'an old kernel')
  t.ok(mayHoldForWriting(7, INO, folder(Array(300).fill(other))), 'too many descriptors')
  t.ok(mayHoldForWriting(7, INO, folder([other], '1')), 'the /proc of another namespace')
  t.ok(mayHoldForWriting(8, INO, folder([other])), 'no such process')
  t.ok(mayHoldForWriting(0, INO, folder([other])), 'a process that has no number here')
})

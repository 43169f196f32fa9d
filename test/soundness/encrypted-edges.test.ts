/**
 * Writes that begin or end within sectors at all the places where the code branches: at sectors, clusters, the
 * ends of the disk and of the file, and of the piece that is encrypted at once. Bytes beside them stay as they were.
 */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { openWritable } from '../support/writable.js'
import { DiskModel } from './disk-model.js'
import { ENCRYPTED_RECIPES } from './encrypted-kinds.js'
import { imageSubject } from './image-scenario.js'
import { makeKind } from './kinds.js'
import { makeQcowKind, QCOW_RECIPES } from './qcow-kinds.js'
import { act, checkReads, type Subject, subjectOf } from './scenario.js'
import type { Step } from './steps.js'

const SECTOR = 512
/** Longer than the piece that is encrypted at once. */
const LARGE = 2 ** 20 + 3 * SECTOR

/** Offsets around `place`, and lengths. */
const AROUND = [-700, -513, -1, 0, 1, 511]
const LENGTHS = [1, 511, 512, 513, 1100]

/** Each write is the first one of its own mount, so that nothing has been made right before. */
function writeAt(subject: Subject, step: Step & { kind: 'write' }, isWarm: boolean): string {
  const files = subject.files.map(file => file.clone())
  const model = new DiskModel(subject.disk)
  try {
    const opened = subject.open(files)
    const steps: Step[] = isWarm ? [{ kind: 'write', offset: 0, length: 1, seed: 1 }, step] : [step]
    for (const each of steps) {
      model.begin(each)
      act(opened, each)
    }
    checkReads(opened, model)
    opened.disk.close()
    model.flushed()
    subject.checkClosed(files, model)
    return ''
  } catch (error) {
    return `${step.offset}+${step.length}: ${(error as Error).message}`
  }
}

function edges(t: { same(a: unknown, b: unknown): unknown }, subject: Subject): void {
  const { sizeBytes, cluster } = subject
  const places = [0, cluster, 3 * cluster, 11 * cluster - 1500, 11 * cluster, sizeBytes - 1500]
  const problems: string[] = []
  let seed = 0
  for (const place of [...places, sizeBytes]) {
    for (const [index, shift] of AROUND.entries()) {
      const offset = place + shift
      if (offset < 0 || offset >= sizeBytes) continue
      const length = Math.min(
        LENGTHS[(seed + index) % LENGTHS.length] as number,
        sizeBytes - offset,
      )
      const problem = writeAt(subject, { kind: 'write', offset, length, seed }, seed++ % 2 === 1)
      if (problem !== '') problems.push(problem)
    }
  }
  t.same(problems, [])
}

const QCOW2 = [
  'ends within',
  'part of a sector',
  'subclusters over a parent',
  'data file',
  'compressed',
]
for (const recipe of ENCRYPTED_RECIPES) {
  if (!QCOW2.some(part => recipe.title.includes(part))) continue
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    edges(t, subjectOf(await makeKind(recipe, tempFolder(t)), openWritable))
  })
}

for (const recipe of QCOW_RECIPES.filter(({ encryption }) => encryption !== undefined)) {
  t.test(`qcow, ${recipe.title}`, async t => {
    edges(t, imageSubject(await makeQcowKind(recipe, tempFolder(t))))
  })
}

t.test('a write of more than is encrypted at once', needs('qemu-img', 'qemu-io'), async t => {
  for (const prefix of ['LUKS', 'AES']) {
    const encryption = ENCRYPTED_RECIPES.find(({ title }) => title.startsWith(prefix))?.encryption
    if (!encryption) throw new Error(`nothing is encrypted by ${prefix}`)
    const title = `${prefix}, large`
    const steps = [{ io: ['write -P 1 64k 100k'] }]
    const recipe = { title, sizeK: 4096, cluster: 2 ** 16, encryption, steps }
    const subject = subjectOf(await makeKind(recipe, tempFolder(t)), openWritable)
    for (const offset of [700, 64 * 1024 - 1]) {
      const step = { kind: 'write', offset, length: LARGE, seed: offset } as const
      t.equal(writeAt(subject, step, true), '')
    }
  }
})

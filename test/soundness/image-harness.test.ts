/** The harness for qcow, cow and encrypted images: it passes the writers as they are, and catches faulty ones. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { openWritableWith } from '../support/writable.js'
import { COW_RECIPES, makeCowKind } from './cow-kinds.js'
import { ENCRYPTED_RECIPES } from './encrypted-kinds.js'
import { cutScenarios } from './cut-suite.js'
import { flawedOpen, type ImageFlaw } from './image-flaws.js'
import { type ImageKind, imageSubject } from './image-scenario.js'
import { makeKind } from './kinds.js'
import { makeQcowKind, QCOW_RECIPES } from './qcow-kinds.js'
import { type Subject, subjectOf } from './scenario.js'

function find<R extends { readonly title: string }>(recipes: readonly R[], title: string): R {
  const found = recipes.find(recipe => recipe.title === title)
  if (!found) throw new Error(`no kind ${title}`)
  return found
}

const flawed = (kind: ImageKind, flaw: ImageFlaw | undefined): Subject => {
  const open = flawedOpen(kind.format.open, flaw)
  return imageSubject({ ...kind, format: { ...kind.format, open } })
}

type Make = (folder: string, flaw?: ImageFlaw) => Promise<Subject>

const qcow =
  (title: string): Make =>
  async (folder, flaw) =>
    flawed(await makeQcowKind(find(QCOW_RECIPES, title), folder), flaw)

const cow =
  (title: string): Make =>
  async (_, flaw) =>
    flawed(makeCowKind(find(COW_RECIPES, title)), flaw)

const qcow2 =
  (title: string): Make =>
  async (folder, flaw) => {
    const kind = await makeKind(find(ENCRYPTED_RECIPES, title), folder)
    return subjectOf(kind, flawedOpen(openWritableWith, flaw))
  }

const QCOW = qcow('a ragged size, over a parent')
const QCOW_AES = qcow('AES, clusters at odd sectors')
const COW = cow('QEMU, x86-64, over a shorter parent')
const COW_ALONE = cow('QEMU, x86-64, empty')
const LUKS = qcow2('LUKS, a shorter parent')
const AES = qcow2('AES, v2, 4 KiB')

for (const [title, make] of Object.entries({ QCOW, QCOW_AES, COW, COW_ALONE, LUKS, AES })) {
  t.test(`the writer as it is: ${title}`, needs('qemu-img', 'qemu-io'), async t => {
    t.ok(cutScenarios(await make(tempFolder(t))) > 100)
  })
}

const FLAWS: readonly {
  readonly flaw: ImageFlaw
  readonly of: string
  readonly make: Make
  readonly message: RegExp
}[] = [
  { flaw: 'links early', of: 'qcow', make: QCOW, message: /beyond|not there|flushed\) reads/ },
  { flaw: 'links early', of: 'cow', make: COW, message: /beyond|flushed\) reads/ },
  { flaw: 'forgets to sync', of: 'qcow', make: QCOW, message: /flushed\) reads/ },
  { flaw: 'forgets to sync', of: 'cow', make: COW, message: /flushed\) reads/ },
  { flaw: 'hands out space twice', of: 'qcow', make: QCOW, message: /read back/ },
  { flaw: 'hands out too little', of: 'qcow', make: QCOW, message: /read back|lies over/ },
  { flaw: 'takes space for zeros', of: 'AES qcow', make: QCOW_AES, message: /read back/ },
  { flaw: 'takes space for zeros', of: 'cow', make: COW_ALONE, message: /opened again.*reads/s },
  { flaw: 'takes space for zeros', of: 'AES qcow2', make: AES, message: /reads/ },
  { flaw: 'forgets the parent', of: 'qcow', make: QCOW, message: /read back/ },
  { flaw: 'forgets the parent', of: 'cow', make: COW, message: /read back/ },
  { flaw: 'forgets the parent', of: 'LUKS', make: LUKS, message: /read back/ },
  { flaw: 'touches the header', of: 'qcow', make: QCOW, message: /the header has changed/ },
  { flaw: 'touches the header', of: 'cow', make: COW, message: /front of the bitmap has changed/ },
  { flaw: 'counts by the file', of: 'AES qcow', make: QCOW_AES, message: /read back/ },
  { flaw: 'counts by the file', of: 'AES qcow2', make: AES, message: /read back/ },
  { flaw: 'counts wrong', of: 'AES qcow', make: QCOW_AES, message: /read back/ },
  { flaw: 'counts wrong', of: 'LUKS', make: LUKS, message: /read back/ },
  { flaw: 'loses the rest of a sector', of: 'AES qcow', make: QCOW_AES, message: /read back/ },
  { flaw: 'loses the rest of a sector', of: 'LUKS', make: LUKS, message: /read back/ },
  { flaw: 'loses the rest of a sector', of: 'AES qcow2', make: AES, message: /read back/ },
  { flaw: 'makes holes of zeros', of: 'AES qcow', make: QCOW_AES, message: /read back/ },
  { flaw: 'makes holes of zeros', of: 'LUKS', make: LUKS, message: /read back/ },
]
for (const { flaw, of, make, message } of FLAWS) {
  t.test(`a writer that ${flaw} is caught: ${of}`, needs('qemu-img', 'qemu-io'), async t => {
    const subject = await make(tempFolder(t), flaw)
    let caught: unknown
    try {
      cutScenarios(subject, { isExpected: true })
    } catch (error) {
      caught = error
    }
    t.match((caught as Error | undefined)?.message ?? 'nothing is seen', message)
  })
}

/** The harness for VMDK images: it passes the writer as it is, and catches each way to make it wrong. */
import t from 'tap'
import { tempFolder } from '../support/run.js'
import { cutScenarios } from './cut-suite.js'
import { flawedVmdk, type VmdkFlaw } from './vmdk-flaws.js'
import { makeVmdkKind, type VmdkKind, VMDK_RECIPES } from './vmdk-kinds.js'
import { vmdkSubject } from './vmdk-scenario.js'

const HOSTED = 'grains of 8 sectors, over a parent'
const COWD = 'COWD, empty, over a parent'

async function kindOf(title: string, folder: string): Promise<VmdkKind> {
  const recipe = VMDK_RECIPES.find(recipe => recipe.title === title)
  if (!recipe) throw new Error(`no kind ${title}`)
  return await makeVmdkKind(recipe, folder)
}

/** As the suites cut. */
const cuts = (kind: VmdkKind, flaw?: VmdkFlaw): number =>
  cutScenarios(vmdkSubject(kind, flawedVmdk(flaw)), { isExpected: flaw !== undefined })

for (const title of [HOSTED, COWD]) {
  t.test(`the writer as it is: ${title}`, async t => {
    t.ok(cuts(await kindOf(title, tempFolder(t))) > 100)
  })
}

const FLAWS: readonly { flaw: VmdkFlaw; title?: string; message: RegExp }[] = [
  { flaw: 'links early', message: /flushed\) reads|lies beyond/ },
  { flaw: 'links early', title: COWD, message: /reads|beyond|corrupt/ },
  { flaw: 'forgets to sync', message: /directories disagree/ },
  { flaw: 'forgets to sync', title: COWD, message: /, flushed\) reads/ },
  { flaw: 'forgets the redundant tables', message: /directories disagree/ },
  { flaw: 'has two minds', message: /by the redundant table|belongs to/ },
  { flaw: 'hands out a grain twice', message: /read back|belongs to a grain/ },
  { flaw: 'hands out too little', message: /read back|belongs to a grain/ },
  { flaw: 'keeps the CID', message: /its CID is the same/ },
  { flaw: 'changes the CID late', message: /its CID is the same/ },
  { flaw: 'does not say that it is open', message: /and it is clean/ },
  { flaw: 'does not say that it is closed', message: /closed, and unclean/ },
  { flaw: 'keeps the free sector', title: COWD, message: /the free sector is/ },
  { flaw: 'writes too much', message: /has changed/ },
]
for (const { flaw, title = HOSTED, message } of FLAWS) {
  t.test(`a writer that ${flaw} is caught: ${title}`, async t => {
    const kind = await kindOf(title, tempFolder(t))
    try {
      t.fail(`${cuts(kind, flaw)} cuts, and nothing is seen`)
    } catch (error) {
      t.match((error as Error).message, message)
    }
  })
}

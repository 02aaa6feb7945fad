"""Headings of reports in five languages, and the names of their sections. How they are found is in `sections`."""

# The canonical name of a section, and its headings: letters only, lower case, without accents. They come from
# MIMIC-CXR (with its typing errors), Open-i, CheXpert Plus, PadChest (Spanish) and other archives, and from reports in
# Portuguese, French and German.
SPELLINGS = {
    "findings": """
        findings, finding, report, body of report, description, radiographic findings,
        findins, findindgs, findgings, findngs, findnings, finidngs, fidnings, fndings, finding s, reference findings,
        hallazgos, hallazgo, descripcion, informe, informe radiologico,
        findings and recommendation, findings and recommendations, findings recommendation,
        findings recommendations,
        achados, achado, descricao, laudo, relatorio, analise,
        resultats, resultat, constatations, compte rendu, compte rendu radiologique,
        befund, befunde, befundbericht, rontgenbefund, radiologischer befund""",
    "impression": """
        impression, impressions, conclusion, conclusions, final impression, opinion, summary, interpretation,
        diagnosis, assessment, findings and impression, findings impression, impression and findings,
        findings and impressions, findings conclusion, findings and conclusion, imp, impression s, conclusion s,
        imprssion, impresson, imprression, imoression, impressoin, impresion, imperssion, mpression, pression,
        impession, impresssion, impressio, impressin, imppression, inpression, conclsion, concusion,
        impresion diagnostica, conclusiones, juicio diagnostico, diagnostico, juicio clinico, resumen,
        impression and recommendation, impression and recommendations, impression and recommendation s,
        impression recommendation, impression recommendations, impression recommendation s,
        conclusion and recommendation, conclusion and recommendations, conclusion recommendation,
        conclusion recommendations, conclusions and recommendations, impression and plan, impression plan,
        overall impression, revised impression,
        conclusion diagnostica, impresiones, conclusao, conclusoes, impressao, impressao diagnostica, hipotese
        diagnostica,
        opiniao, interpretation radiologique, synthese, au total, diagnostic,
        beurteilung, zusammenfassung, zusammenfassende beurteilung, fazit, diagnose, befundbeurteilung""",
    "indication": """
        indication, indications, clinical indication, clinical indications, reason for exam, reason for examination,
        reason for study, reason for this exam, reason for this examination, reason, reason for procedure,
        indication for exam, indication for examination, indication for study, indications for exam,
        underlying medical condition, clinical question, idication, indicaton, inidcation, ndication, indcation,
        indication s, history indication, indication history, history and indication,
        indicacion, indicacion clinica, motivo, motivo de consulta, motivo de la exploracion, motivo de exploracion,
        indicacao, indicacao clinica, motivo do exame, indication de l examen, motif, motif de l examen,
        question clinique,
        fragestellung, indikation, rechtfertigende indikation, klinische fragestellung""",
    "comparison": """
        comparison, comparisons, comparison exam, comparison exams, comparison film, comparison films,
        comparison study, comparison studies, comparison s, comparison radiograph, comparison radiographs,
        reference exam, reference study, prior, priors, prior study, prior studies, prior exam, prior exams,
        prior comparison, prior comparisons, comparision, comparsion, comparrison, comparisions, comparions,
        comparacion, estudio previo, estudios previos,
        comparacao, exame anterior, exames anteriores, comparaison, examen anterieur, examens anterieurs,
        vergleich, voraufnahme, voraufnahmen, vorbefund, vorbefunde, voruntersuchung, voruntersuchungen, zum
        vergleich""",
    "technique": """
        technique, techniques, procedure, procedures, procedure comments, protocol,
        techinique, technqiue, tecnica, proyeccion, proyecciones,
        metodo, metodologia, technique d examen, technique de l examen, technik, untersuchungstechnik,
        methode, methodik""",
    "history": """
        history, clinical history, patient history, medical history, clinical information, clinical data,
        clinical background, clinical details, relevant history, relevant clinical information, clinical statement,
        pertinent history, brief history, history of present illness, clinical diagnosis, clinical hx, hx,
        histroy, hisotry,
        antecedentes, historia clinica, datos clinicos, informacion clinica,
        historico, historia, dados clinicos, informacao clinica, informacoes clinicas, antecedents,
        renseignements cliniques, contexte clinique, histoire clinique, histoire de la maladie,
        anamnese, klinische angaben, klinik, vorgeschichte, klinische angaben und fragestellung""",
    "recommendation": """
        recommendation, recommendations, recommendation s, recommended follow up, follow up recommendations,
        recommedation, recommedations, recomendation, recomendations, recomendacion, recomendaciones,
        recomendacao, recomendacoes, recommandation, recommandations, empfehlung, empfehlungen, procedere""",
    "notification": """
        notification, notifications, notification s, communication, communications, critical results,
        critical result, critical communication, communication of critical results, notificiation""",
    "addendum": """
        addendum, addenda, addendum begins, addendum report, addendum to report, final addendum, adendum""",
    "examination": """
        examination, exam, examinations, exams, type of examination, type of exam, study, exam type, procedure name,
        exam description, study type, narrative, examiantion, exmination, title of exam,
        exploracion, estudio, prueba, tipo de exploracion,
        exame, examen, type d examen, untersuchung, untersuchungsart, aufnahme, radiografia de torax,
        radiographie du thorax,
        radiographie thoracique, rontgen thorax, rontgenthorax, thorax""",
    # Written before a radiologist had read the image: used only without a better section.
    "provisional": """
        wet read, wetread, provisional findings impression pfi, provisional findings impression, pfi,
        provisional impression, provisional findings, preliminary report, preliminary read, preliminary findings,
        preliminary impression, prelim""",
    # These end a section and begin none that is used.
    "": """
        end of impression, end of impression summary, end of report, accession number, accession,
        dictated by, electronically signed by, signed by, attending radiologist, transcribed by, approved by,
        date of exam, date of service, addendum ends, end of addendum, disclaimer""",
}

HEADINGS = {" ".join(heading.split()): name for name, headings in SPELLINGS.items() for heading in headings.split(",")}

LONGEST_HEADING = max(len(heading.split()) for heading in HEADINGS)

# Everyday words: headings only at the start of a line.
LINE_ONLY = frozenset(
    """
    report description summary opinion interpretation diagnosis assessment imp reason procedure
    procedures protocol prior priors study exam exams informe descripcion resumen diagnostico motivo
    tecnica estudio prueba accession descricao laudo relatorio analise metodo metodologia diagnostic
    diagnose synthese motif klinik technik methode historia exame examen untersuchung aufnahme thorax
    opiniao resultat resultats fazit vergleich procedere disclaimer pression communication
    communications hx
    """.split()
)

# Written by somebody who read the image.
READ_TEXT = frozenset("findings impression recommendation notification addendum provisional".split())
